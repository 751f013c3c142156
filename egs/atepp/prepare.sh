#!/usr/bin/env bash
# ATEPP 1.x and its recordings to tokens with notes: manifests, codes, splits by composition, MIDI. The
# corpus, with its ATEPP-metadata-1.x.csv, is not downloaded: get it as README.md says.
#
#   --audio-dir DIR        the recordings, named as the MIDI files (00077.mp3), which are yours to get
#                          (default: recordings in --corpus-dir)
#   --cut-seconds S        equal parts of performances, of S seconds on average: 10 (default) are 5 to
#                          15 s; 0: whole performances, for training in windows
#   --codec NAME           facebook/encodec_32khz (default), or another of `rvqlm codecs`
#   --valid X --test X     validation and test set: a share of the hours (default 0.05 each) or a whole
#                          number of compositions
#
# Stages: 0 stand-in, 1 manifests: DIR/manifests, 2 tokenize: DIR/tokenized, 3 split by composition and
# index, 4 notes, 5 validate.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

audio_dir=
cut_seconds=10
codec=facebook/encodec_32khz
valid=
test=
source "$here/../shared/corpus.sh"
enter_corpus ATEPP data
tokens=$data_dir/tokenized
if $stand_in; then valid=${valid:-1} test=${test:-1}; fi

if begin_stage 0 "Stand-in"; then
  if $stand_in; then
    make_stand_in
  elif ! has_corpus; then
    option_error "--corpus-dir is missing: the unpacked ATEPP, which is handed out after an agreement"
  fi
fi

if begin_stage 1 "Manifests"; then
  python local/atepp.py --corpus-dir "$corpus_dir" --audio-dir "${audio_dir:-$corpus_dir/recordings}" \
    --out-dir "$data_dir/manifests" --cut-seconds "$cut_seconds"
fi

tokenize_corpus 2 "$data_dir/manifests/cuts.jsonl.gz"
split_corpus 3 --by recording --valid "${valid:-0.05}" --test "${test:-0.05}" --seed "$seed"
make_notes 4
validate_corpus 5
end_stage
