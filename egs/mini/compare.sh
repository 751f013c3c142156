#!/usr/bin/env bash
# Every family of models on the same speech, with as many parameters and as many minutes or steps of
# training, in one table: bits per second of held-out speech, distances of their samples from the
# recordings, speed; and a page on which raters compare them. Fifty minutes on two CPU cores.
#
#   --quick            tiny models on a little speech, some three minutes: to see that all works
#   --families "A B"   which, by the names of conf/compare/*.yaml (default: all seven)
#   --hours H          hours of speech to make (default 6; quick: 0.3)
#   --voices "A B"     of these speakers of local/speakers.py, as run.sh (default: all, six of them for
#                      the test alone)
#   --train-minutes M  minutes of training for each family (default 4; quick: 0.05)
#   --train-steps N    steps in place of minutes: every family sees the same batches, on any machine
#   --judge N          recordings that are continued for judges from outside to hear, and by the model
#                      listening to itself (default 8; quick: 2; 0: none of it)
#   --seed N           of corpus, split, training and samples (default 0)
#   --exp-dir DIR      the experiments, a folder a family (default exp/compare; with other options
#                      than the defaults exp/compare-Hh-Mmin-seedN or exp/compare-Hh-Nsteps-seedN, or
#                      exp/compare-quick-seedN)
#   --data-dir DIR     corpus and tokens (default data/Hh-seedN, with voices data/Hh-VOICES-seedN)
#   --results FILE     page that gets the table too, between its marks (default RESULTS.md of this
#                      folder where all options that bear on the figures are the defaults, else none)
#   --stage N          first stage to run (default 0)
#   --stop-stage M     last stage to run (default 6)
#   --dry-run          print what each stage would run, and run nothing
#
# Stages: 0 set up, 1 prepare (see prepare.sh), 2 train, 3 evaluate, 4 generate, 5 judge, 6 table.
# The same command resumes where it was interrupted.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

stage=0
stop_stage=6
dry_run=false
quick=false
all_families="delay parallel flatten coarse_first depth valle masked"
families=$all_families
hours=
voices=
train_minutes=
train_steps=
judge=
seed=0
exp_dir=
data_dir=
results=
source "$here/../shared/recipe.sh"

[[ -z $train_steps || -z $train_minutes ]] ||
  option_error "--train-steps and --train-minutes exclude each other"
tiny=()
if $quick; then
  hours=${hours:-0.3} train_minutes=${train_minutes:-0.05} name=compare-quick-seed$seed
  judge=${judge:-2}
  tiny=(--decoder-dim 64 --nhead 2 --num-decoder-layers 1 --max-duration 15 --log-every-steps 1)
else
  hours=${hours:-6} train_minutes=${train_minutes:-4} judge=${judge:-8}
  name=compare-${hours}h-${train_steps:-$train_minutes}${train_steps:+steps}
  if [[ -z $train_steps ]]; then name+=min; fi
  name+=-seed$seed
  if [[ $hours-$train_minutes-$seed-$voices$train_steps == 6-4-0- ]]; then
    name=compare
    if [[ $families == "$all_families" ]]; then results=${results:-$here/RESULTS.md}; fi
  fi
fi
# the same for every family; sentences are about 4 s long, and one at a time is what can be compared
how=(--prompt-seconds 2 --seconds 6 --min-seconds 1 --temperature 0.9 --top-k 200 --batch-size 1)
require_number hours train_minutes
require_integer seed judge ${train_steps:+train_steps}
for family in $families; do
  [[ -f $here/conf/compare/$family.yaml ]] || option_error "--families: no conf/compare/$family.yaml"
done
[[ -n ${family:-} ]] || option_error "--families is empty"

enter_recipe exp_dir data_dir results
exp_dir=${exp_dir:-exp/$name}
data_dir=${data_dir:-data/${hours}h-${voices:+${voices// /-}-}seed$seed}
if [[ -n $train_steps ]]; then
  # the same steps at which to look, for `rvqlm monitor` to compare
  budget=(--max-steps "$train_steps" --valid-every-steps $(((train_steps + 4) / 5)))
  terms="$train_steps steps"
else
  # validation at the end alone: what it costs differs and would be taken from the training
  budget=(--max-minutes "$train_minutes" --valid-every-minutes "$train_minutes")
  terms="$train_minutes minutes"
fi

set_up 0
prepare_data 1 --hours "$hours" ${voices:+--voices "$voices"}

if begin_stage 2 "Train"; then
  for family in $families; do
    log "   $family"
    rvqlm train --config "conf/compare/$family.yaml" --manifest-dir "$tokens" \
      --exp-dir "$exp_dir/$family" --seed "$seed" "${budget[@]}" "${tiny[@]}"
  done
fi

if begin_stage 3 "Evaluate"; then
  for family in $families; do
    exp=$exp_dir/$family
    if [[ $exp/eval_test.json -nt $exp/best.pt ]]; then continue; fi
    log "   $family"
    rvqlm evaluate --exp-dir "$exp" --manifest-dir "$tokens" --split test --prompt-fraction 0 \
      --free-running "$judge"
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
      --num-prompts $((judge ? judge : 4)) "${how[@]}" --seed "$seed" "${own[@]}"
    touch "$exp/samples/.complete"
  done
fi

exps=()
for family in $families; do exps+=("$exp_dir/$family"); done
if ((judge)) && begin_stage 5 "Judge"; then
  for exp in "${exps[@]}"; do
    if [[ $exp/samples/.judged -nt $exp/samples/.complete ]]; then continue; fi
    log "   ${exp##*/}"
    rvqlm judge --samples "$exp" --references "$tokens" --split test --num "$judge" \
      --judges signal codec-latents dnsmos resemblyzer
    touch "$exp/samples/.judged"
  done
  listening_test --exp-dirs "${exps[@]}"
fi

if begin_stage 6 "Table"; then
  title="Families at equal parameters and $terms of training each"
  if $quick; then title="Tiny models of all families: a test of the commands, no comparison"; fi
  table=(rvqlm compare --exp-dirs "${exps[@]}" --split test --name families
    --title "$title")
  "${table[@]}" --out "$exp_dir/compare.md"
  # the page goes where the audio does not: no links
  if [[ -n $results ]]; then "${table[@]}" --num-samples 0 --out "$results"; fi
fi

end_stage
