#!/usr/bin/env bash
# A solo over a backing track: the data of prepare.sh, an encoder-decoder trained on it, what it plays over
# backing tracks of the test split, one page.
#
#   ./egs/jazz/run.sh --quick                       offline, on a synthetic band, in minutes
#   ./egs/jazz/run.sh --data-config my.yaml --cuda your playlist
#   ./egs/jazz/run.sh --corpus-dir my-jazz          your recordings
#
#   --quick              a small model on a stand-in of a minute, its Demucs and codec random
#   --data-config FILE   configuration of the data (default conf/data.yaml; quick: conf/data_quick.yaml)
#   --corpus-dir DIR     a folder of recordings in the place of the configuration's playlist
#   --keep "WHAT"        intermediates to keep, whatever the configuration says (see prepare.sh)
#   --cuda               separate, tokenize and train on a GPU
#   --config FILE        flags of the training (default ../custom/conf/saxgpt_medium.yaml; quick:
#                        conf/saxgpt_quick.yaml)
#   --train-minutes M    minutes of training (default 1440; quick: 0.2)
#   --num-samples N      backing tracks of the test split to play over (default 4; quick: 1)
#   --seconds S          how long each sample is (default 30; quick: 2)
#   --judge N            recordings, and samples of them, for judges from outside to hear, and a
#                        listening test (default 8; quick: 1; 0: none of it)
#   --data-dir DIR       data (default data/jazz; quick: data/quick)
#   --exp-dir DIR        the experiment (default exp/jazz; quick: exp/quick)
#   --seed N             of split, training and samples (default: train_test_split.seed of the data)
#   --stage N            first stage to run (default 0)
#   --stop-stage M       last stage to run (default 6)
#   --dry-run            print what each stage would run, and run nothing
#
# Stages: 0 set up, 1 prepare (see prepare.sh), 2 train, 3 evaluate, with the backing tracks and without,
# 4 play over backing tracks of the test split, 5 judge, 6 report.
# The same command resumes where it was interrupted.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

stage=0
stop_stage=6
dry_run=false
quick=false
data_config=
corpus_dir=
keep=
cuda=false
config=
train_minutes=
num_samples=
seconds=
judge=
data_dir=
exp_dir=
seed=
source "$here/../shared/recipe.sh"
if $quick; then
  defaults=(conf/data_quick.yaml conf/saxgpt_quick.yaml 0.2 1 2 quick 1)
else
  defaults=(conf/data.yaml ../custom/conf/saxgpt_medium.yaml 1440 4 30 jazz 8)
fi
train_minutes=${train_minutes:-${defaults[2]}} num_samples=${num_samples:-${defaults[3]}}
seconds=${seconds:-${defaults[4]}} judge=${judge:-${defaults[6]}}
require_number train_minutes seconds
require_integer num_samples judge ${seed:+seed}
[[ -z $corpus_dir || $quick == false ]] || option_error "--corpus-dir and --quick exclude each other"
enter_recipe data_config corpus_dir config data_dir exp_dir
data_config=${data_config:-$PWD/${defaults[0]}} config=${config:-${defaults[1]}}
data_dir=${data_dir:-$PWD/data/${defaults[5]}} exp_dir=${exp_dir:-exp/${defaults[5]}}

set_up 0 --extra jazz
if $dry_run; then source ../shared/environment.sh; fi # for the configuration, even if nothing runs
source local/data.sh
declare -A data
read_data "$data_config" "$keep" "$corpus_dir"
seed=${seed:-${data[seed]}} tokens=$(place codes_dir)/lead
source=(${corpus_dir:+--corpus-dir "$corpus_dir"})
if $quick; then
  source=(--stand-in)
  export RVQLM_CODECS=$data_dir/stand-in/codecs
fi
device=()
if $cuda; then device=(--device cuda); fi

prepare_data 1 --config "$data_config" ${keep:+--keep "$keep"} "${source[@]}" "${device[@]}"
train_model 2 --window-frames "${data[seq_len]}" --hop-frames "${data[stride]}" "${device[@]}"
evaluate_model 3
if begin_stage 3 "Evaluate without the backing tracks"; then
  evaluate --without source
fi
if begin_stage 4 "Play over backing tracks"; then
  rm -rf "$exp_dir/samples" # of an earlier training
  rvqlm generate --exp-dir "$exp_dir" --manifest-dir "$tokens" --split test --seed "$seed" \
    --num-prompts "$num_samples" --prompt-seconds 0 --seconds "$seconds" --temperature 1.0 --top-k 250
fi
judge_samples 5
write_report 6 "$num_samples"
end_stage
