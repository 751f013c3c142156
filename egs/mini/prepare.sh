#!/usr/bin/env bash
# From nothing to tokens: speech made by espeak-ng, encoded, split and indexed. Offline.
#
#   --hours H       hours of speech to make, at least 0.15 (default 6)
#   --seed N        another seed: other sentences, other split (default 0)
#   --voices "A B"  only these speakers of local/speakers.py, such as m1-us (default: all)
#   --data-dir DIR  where everything goes (default data/Hh-seedN, with voices data/Hh-A-B-seedN, in
#                   this folder)
#   --stage N       first stage to run (default 0)
#   --stop-stage M  last stage to run (default 5)
#   --dry-run       print what each stage would run, and run nothing
#
# Stages:
#   0 synthesise audio with transcripts and phonemes: DIR/audio
#   1 lhotse manifests: DIR/manifests
#   2 tokenize with the embedded codec: DIR/tokens
#   3 split by speaker, named voices by sentence, into train, valid and test; index
#   4 validate, print statistics
#   5 the phonemes of each sentence as symbols beside its codes, for text to speech
#
# Each stage resumes where it was interrupted.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

stage=0
stop_stage=5
dry_run=false
hours=6
seed=0
voices=
data_dir=
source "$here/../shared/parse_options.sh"
source "$here/../shared/stages.sh"
$dry_run || source "$here/../shared/environment.sh"
require_number hours
require_integer seed
if ! awk "BEGIN { exit !($hours >= 0.15) }"; then
  option_error "--hours $hours is less than a sentence of each voice; give 0.15 or more"
fi

# a given folder is relative to where the command was given; all else happens in this folder
if [[ -n $data_dir ]]; then data_dir=$(absolute "$data_dir"); fi
cd "$here"
# manifests name audio by its path: the same, whether the folder was given or not
data_dir=${data_dir#"$PWD"/}
data_dir=${data_dir:-data/${hours}h-${voices:+${voices// /-}-}seed$seed}
read -ra chosen <<<"$voices"

if begin_stage 0 "Synthesise $hours hours of speech"; then
  python local/synthesize.py --hours "$hours" --seed "$seed" --out-dir "$data_dir/audio" \
    ${chosen[@]:+--speakers "${chosen[@]}"}
fi

if begin_stage 1 "Manifests"; then
  python local/prepare_mini.py --audio-dir "$data_dir/audio" --manifest-dir "$data_dir/manifests"
fi

if begin_stage 2 "Tokenize"; then
  rvqlm tokenize --input "$data_dir/manifests/mini_cuts.jsonl.gz" --out-dir "$data_dir/tokens" \
    --codec spectral
fi

if begin_stage 3 "Split and index"; then
  # the test voices were not in the codec's training set either
  how=(--valid 0.02 --test-speakers f3 steph m3 Hugo travis sandro)
  if [[ -n $voices ]]; then how=(--by recording --valid 0.02 --test 0.05); fi
  rvqlm split --manifest-dir "$data_dir/tokens" --seed "$seed" "${how[@]}"
  rvqlm index --manifest-dir "$data_dir/tokens"
fi

if begin_stage 4 "Validate"; then
  rvqlm validate --manifest-dir "$data_dir/tokens"
fi

if begin_stage 5 "Symbols of the texts"; then
  # as the synthesiser spoke them, each voice in its accent; no punctuation is in them
  rvqlm text --manifest-dir "$data_dir/tokens" --type phonemes --phonemes-field custom.phonemes \
    --language-field custom.voice --language en-us --no-punctuation --no-stress
fi

end_stage
