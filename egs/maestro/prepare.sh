#!/usr/bin/env bash
# MAESTRO v3.0.0 to tokens with notes: manifests, codes, the corpus' own division, MIDI.
#
#   --corpus-dir DIR   maestro-v3.0.0 where you have it (default: downloaded to data in this folder)
#   --download-dir DIR where it is downloaded to and unpacked: 101 GB, then 120 GB
#   --data-dir DIR     where manifests and tokens go (default data in this folder): DIR/manifests,
#                      DIR/tokenized
#   --cut-seconds S    equal parts of performances, of S seconds on average: 10 (default) are 5 to 15 s;
#                      0: whole performances, for training in windows
#   --codec NAME       facebook/encodec_32khz (default), or another of `rvqlm codecs`
#   --num-codebooks K  levels to keep, coarsest first (default: all)
#   --device DEVICE    of the codec: cpu, cuda or auto (default auto)
#   --stand-in         a few minutes by a synthesiser instead of the corpus, and a random codec; offline
#   --seed N           of the stand-in (default 0)
#   --stage N          first stage to run (default 0)
#   --stop-stage M     last stage to run (default 5)
#   --dry-run          print what each stage would run, and run nothing
#
# Stages: 0 download, 1 manifests, 2 tokenize, 3 split as the corpus is, and index, 4 notes, 5 validate.
# Each resumes where it was interrupted.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

stage=0
stop_stage=5
dry_run=false
corpus_dir=
download_dir=
data_dir=
cut_seconds=10
codec=facebook/encodec_32khz
num_codebooks=
device=auto
stand_in=false
seed=0
source "$here/../shared/parse_options.sh"
source "$here/../shared/stages.sh"
source "$here/../shared/piano.sh"
$dry_run || source "$here/../shared/environment.sh"
require_integer seed
enter_corpus maestro-v3.0.0

if begin_stage 0 "Download"; then
  if $stand_in; then
    make_stand_in "$corpus_dir"
  elif [[ -z $corpus_dir ]]; then
    python local/maestro.py --download-dir "${download_dir:-data}"
  fi
fi
corpus_dir=${corpus_dir:-${download_dir:-data}/maestro-v3.0.0}

if begin_stage 1 "Manifests"; then
  python local/maestro.py --corpus-dir "$corpus_dir" --out-dir "$data_dir/manifests" \
    --cut-seconds "$cut_seconds"
fi

tokenize_piano 2 --given split
end_stage
