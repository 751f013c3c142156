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
# The same command resumes where it was interrupted.
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
source "$here/../shared/recipe.sh"

if $quick; then
  hours=${hours:-0.3} train_minutes=${train_minutes:-0.7}
  config=conf/quick.yaml name=quick-seed$seed num_samples=2
else
  hours=${hours:-6} train_minutes=${train_minutes:-7}
  config=conf/codec_lm.yaml name=${hours}h-${train_minutes}min-seed$seed num_samples=4
fi
require_number hours train_minutes
require_integer seed
enter_recipe exp_dir data_dir
exp_dir=${exp_dir:-exp/$name}
data_dir=${data_dir:-data/${hours}h-seed$seed}

set_up 0
prepare_data 1 --hours "$hours"
train_model 2
evaluate_model 3
# the sentences are about 4 s long: prompted with half of one, the model ends it and perhaps continues
generate_samples 4 "$num_samples" 2 --seconds 6 --min-seconds 1 --temperature 0.9 --top-k 200
write_report 5 "$num_samples"
end_stage
