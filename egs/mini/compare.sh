#!/usr/bin/env bash
# Every family of models on the same speech, with as many parameters and as many minutes of training,
# in one table: bits per second of held-out voices, speed and samples. Forty minutes on two CPU cores.
#
#   --quick            tiny models on a little speech, some three minutes: to see that all works
#   --families "A B"   which, by the names of conf/compare/*.yaml (default: all seven)
#   --hours H          hours of speech to make (default 6; quick: 0.3)
#   --train-minutes M  minutes of training for each family (default 4; quick: 0.05)
#   --seed N           of corpus, split, training and samples (default 0)
#   --exp-dir DIR      the experiments, a folder a family (default exp/compare; with other options
#                      than the defaults exp/compare-Hh-Mmin-seedN, or exp/compare-quick-seedN)
#   --data-dir DIR     corpus and tokens (default data/Hh-seedN)
#   --results FILE     page that gets the table too, between its marks (default RESULTS.md of this
#                      folder where all options that bear on the figures are the defaults, else none)
#   --stage N          first stage to run (default 0)
#   --stop-stage M     last stage to run (default 5)
#   --dry-run          print what each stage would run, and run nothing
#
# Stages: 0 set up, 1 prepare (see prepare.sh), 2 train, 3 evaluate, 4 generate, 5 table.
# The same command resumes where it was interrupted.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

stage=0
stop_stage=5
dry_run=false
quick=false
all_families="delay parallel flatten coarse_first depth valle masked"
families=$all_families
hours=
train_minutes=
seed=0
exp_dir=
data_dir=
results=
source "$here/../shared/recipe.sh"

tiny=()
if $quick; then
  hours=${hours:-0.3} train_minutes=${train_minutes:-0.05} name=compare-quick-seed$seed num_prompts=2
  tiny=(--decoder-dim 64 --nhead 2 --num-decoder-layers 1 --max-duration 15 --log-every-steps 1)
else
  hours=${hours:-6} train_minutes=${train_minutes:-4} num_prompts=4
  name=compare-${hours}h-${train_minutes}min-seed$seed
  if [[ $hours-$train_minutes-$seed == 6-4-0 ]]; then
    name=compare
    if [[ $families == "$all_families" ]]; then results=${results:-$here/RESULTS.md}; fi
  fi
fi
# the same for every family; sentences are about 4 s long, and one at a time is what can be compared
how=(--prompt-seconds 2 --seconds 6 --min-seconds 1 --temperature 0.9 --top-k 200 --batch-size 1)
require_number hours train_minutes
require_integer seed
for family in $families; do
  [[ -f $here/conf/compare/$family.yaml ]] || option_error "--families: no conf/compare/$family.yaml"
done
[[ -n ${family:-} ]] || option_error "--families is empty"

enter_recipe exp_dir data_dir results
exp_dir=${exp_dir:-exp/$name}
data_dir=${data_dir:-data/${hours}h-seed$seed}

set_up 0
prepare_data 1 --hours "$hours"

if begin_stage 2 "Train"; then
  for family in $families; do
    log "   $family"
    # validation at the end alone: what it costs differs and would be taken from the training
    rvqlm train --config "conf/compare/$family.yaml" --manifest-dir "$tokens" \
      --exp-dir "$exp_dir/$family" --max-minutes "$train_minutes" --seed "$seed" \
      --valid-every-minutes "$train_minutes" "${tiny[@]}"
  done
fi

if begin_stage 3 "Evaluate"; then
  for family in $families; do
    exp=$exp_dir/$family
    if [[ $exp/eval_test.json -nt $exp/best.pt ]]; then continue; fi
    log "   $family"
    rvqlm evaluate --exp-dir "$exp" --manifest-dir "$tokens" --split test --prompt-fraction 0
  done
fi

if begin_stage 4 "Generate"; then
  for family in $families; do
    exp=$exp_dir/$family
    if [[ $exp/samples/.complete -nt $exp/best.pt ]]; then continue; fi
    log "   $family"
    rm -rf "$exp/samples" # of an earlier training, or unfinished
    own=()
    if [[ $family == masked ]]; then own=(--steps 16); fi
    rvqlm generate --exp-dir "$exp" --manifest-dir "$tokens" --split test \
      --num-prompts "$num_prompts" "${how[@]}" --seed "$seed" "${own[@]}"
    touch "$exp/samples/.complete"
  done
fi

if begin_stage 5 "Table"; then
  exps=()
  for family in $families; do exps+=("$exp_dir/$family"); done
  title="Families at equal parameters and $train_minutes minutes of training each"
  if $quick; then title="Tiny models of all families: a test of the commands, no comparison"; fi
  table=(rvqlm compare --exp-dirs "${exps[@]}" --split test --name families
    --title "$title")
  "${table[@]}" --out "$exp_dir/compare.md"
  # the page goes where the audio does not: no links
  if [[ -n $results ]]; then "${table[@]}" --num-samples 0 --out "$results"; fi
fi

end_stage
