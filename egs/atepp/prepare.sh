#!/usr/bin/env bash
# ATEPP 1.x and its recordings to tokens with notes: manifests, codes, splits by composition, MIDI.
#
#   --corpus-dir DIR   the unpacked corpus, with ATEPP-metadata-1.x.csv: get it as README.md says
#   --audio-dir DIR    the recordings, named as the MIDI files (00077.mp3), which are yours to get
#                      (default: recordings in --corpus-dir)
#   --data-dir DIR     where manifests and tokens go (default data in this folder): DIR/manifests,
#                      DIR/tokenized
#   --cut-seconds S    equal parts of performances, of S seconds on average: 10 (default) are 5 to 15 s;
#                      0: whole performances, for training in windows
#   --codec NAME       facebook/encodec_32khz (default), or another of `rvqlm codecs`
#   --num-codebooks K  levels to keep, coarsest first (default: all)
#   --device DEVICE    of the codec: cpu, cuda or auto (default auto)
#   --valid X --test X validation and test set: a share of the hours (default 0.05 each) or a whole
#                      number of compositions
#   --stand-in         a few minutes by a synthesiser instead of the corpus, and a random codec; offline
#   --seed N           another seed, another split (default 0)
#   --stage N          first stage to run (default 0)
#   --stop-stage M     last stage to run (default 5)
#   --dry-run          print what each stage would run, and run nothing
#
# Stages: 0 stand-in, 1 manifests, 2 tokenize, 3 split by composition and index, 4 notes, 5 validate.
# Each resumes where it was interrupted.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

stage=0
stop_stage=5
dry_run=false
corpus_dir=
audio_dir=
data_dir=
cut_seconds=10
codec=facebook/encodec_32khz
num_codebooks=
device=auto
valid=
test=
stand_in=false
seed=0
source "$here/../shared/parse_options.sh"
source "$here/../shared/stages.sh"
source "$here/../shared/piano.sh"
$dry_run || source "$here/../shared/environment.sh"
require_integer seed
enter_corpus ATEPP
if $stand_in; then valid=${valid:-1} test=${test:-1}; fi
[[ -n $corpus_dir ]] ||
  option_error "--corpus-dir is missing: the unpacked ATEPP, which is handed out after an agreement"

if begin_stage 0 "Stand-in"; then
  if $stand_in; then make_stand_in "$corpus_dir"; fi
fi

if begin_stage 1 "Manifests"; then
  python local/atepp.py --corpus-dir "$corpus_dir" --audio-dir "${audio_dir:-$corpus_dir/recordings}" \
    --out-dir "$data_dir/manifests" --cut-seconds "$cut_seconds"
fi

tokenize_piano 2 --valid "${valid:-0.05}" --test "${test:-0.05}" --seed "$seed"
end_stage
