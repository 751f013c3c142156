#!/usr/bin/env bash
# The whole way on one computer: makes speech, trains a codec language model on it and writes a page
# with audio that the model made. No GPU, no root, no network but for the installation.
#
#   --quick            a small model on a little speech, about two minutes: to see that all works
#   --hours H          hours of speech to make (default 6; quick: 0.3)
#   --train-minutes M  minutes of training (default 7; quick: 0.7)
#   --seed N           of corpus, split, training and samples (default 0)
#   --exp-dir DIR      the experiment (default exp/Hh-Mmin-seedN, or exp/quick-seedN)
#   --data-dir DIR     corpus and tokens (default data/Hh-seedN)
#   --stage N          first stage to run (default 0)
#   --stop-stage M     last stage to run (default 5)
#
# Stages: 0 set up, 1 prepare (see prepare.sh), 2 train, 3 evaluate, 4 generate, 5 report.
# The same command goes on where it was interrupted.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

stage=0
stop_stage=5
quick=false
hours=
train_minutes=
seed=0
exp_dir=
data_dir=
source "$here/../shared/parse_options.sh"

if $quick; then
  hours=${hours:-0.3} train_minutes=${train_minutes:-0.7}
  config=conf/quick.yaml name=quick-seed$seed num_samples=2
else
  hours=${hours:-6} train_minutes=${train_minutes:-7}
  config=conf/codec_lm.yaml name=${hours}h-${train_minutes}min-seed$seed num_samples=4
fi
# the sentences are about 4 s long: hear half of one, go on to its end and perhaps beyond
how=(--seconds 6 --min-seconds 1 --temperature 0.9 --top-k 200 --seed "$seed")
require_number hours train_minutes
require_integer seed

# given folders are relative to where the command was given; all else happens in this folder
if [[ -n $exp_dir ]]; then exp_dir=$(absolute "$exp_dir"); fi
if [[ -n $data_dir ]]; then data_dir=$(absolute "$data_dir"); fi
source "$here/../shared/stages.sh"
cd "$here"
exp_dir=${exp_dir:-exp/$name}
data_dir=${data_dir:-data/${hours}h-seed$seed}
tokens=$data_dir/tokens
stage_log=$exp_dir/stages.tsv

if begin_stage 0 "Set up"; then
  ../../tools/setup.sh
fi
source ../shared/environment.sh

if begin_stage 1 "Prepare the data"; then
  ./prepare.sh --hours "$hours" --seed "$seed" --data-dir "$data_dir"
fi

if begin_stage 2 "Train"; then
  rvqlm trainer --config "$config" --manifest-dir "$tokens" --exp-dir "$exp_dir" \
    --max-minutes "$train_minutes" --seed "$seed"
fi

if begin_stage 3 "Evaluate"; then
  rvqlm evaluate --exp-dir "$exp_dir" --manifest-dir "$tokens" --split test
fi

if begin_stage 4 "Generate"; then
  rm -rf "$exp_dir/samples" # of an earlier training
  rvqlm generate --exp-dir "$exp_dir" --manifest-dir "$tokens" --split test \
    --num-prompts "$num_samples" --prompt-seconds 2 "${how[@]}"
  rvqlm generate --exp-dir "$exp_dir" --num-samples "$num_samples" "${how[@]}"
fi

if begin_stage 5 "Report"; then
  end_stage # of the page itself nothing can be on the page
  rvqlm report --exp-dir "$exp_dir" --manifest-dir "$tokens" --num-samples "$num_samples"
fi

end_stage
