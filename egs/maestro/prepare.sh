#!/usr/bin/env bash
# MAESTRO v3.0.0 to tokens with notes: manifests, codes, the corpus' own division, MIDI.
#
#   --download-dir DIR     where it is downloaded to and unpacked without --corpus-dir: 101 GB, then
#                          120 GB (default data in this folder)
#   --cut-seconds S        equal parts of performances, of S seconds on average: 10 (default) are 5 to
#                          15 s; 0: whole performances, for training in windows
#   --codec NAME           facebook/encodec_32khz (default), or another of `rvqlm codecs`
#
# Stages: 0 download, 1 manifests: DIR/manifests, 2 tokenize: DIR/tokenized, 3 split as the corpus is, and
# index, 4 notes, 5 validate.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

download_dir=
cut_seconds=10
codec=facebook/encodec_32khz
source "$here/../shared/corpus.sh"
enter_corpus maestro-v3.0.0 data
tokens=$data_dir/tokenized

if begin_stage 0 "Download"; then
  if $stand_in; then
    make_stand_in
  elif ! has_corpus; then
    python local/maestro.py --download-dir "$download_dir"
  fi
fi

if begin_stage 1 "Manifests"; then
  python local/maestro.py --corpus-dir "$corpus_dir" --out-dir "$data_dir/manifests" \
    --cut-seconds "$cut_seconds"
fi

tokenize_corpus 2 "$data_dir/manifests/cuts.jsonl.gz"
split_corpus 3 --by recording --given split
make_notes 4
validate_corpus 5
end_stage
