# shellcheck shell=bash disable=SC2034,SC2154 # variables of the script that sources it
#
# Options of run.sh of every recipe of published speech:
#   --quick              espeak-ng instead of the corpus, a random codec, tiny models, offline, a few
#                        minutes of one core: nothing to hear
#   --model NAME         codec-lm (default), valle or masked
#   --train-stage WORDS  of valle: 0 both networks at once (default), "1 2" one after the other, each
#                        --train-minutes long
#   --codec NAME         facebook/encodec_24khz (default), descript/dac_44khz, ...
#   --sentences N        held-out sentences to say (default 32; quick: 2)
#   --judge N            recordings, and samples of them, for judges from outside to hear, release
#                        checks and a listening test (default 16; quick: 1; 0: none of it)
#   --say TEXT           a sentence of your own
#   --data-dir DIR       tokens (default data/CODEC in this folder)
#   --exp-dir DIR        the experiment (default exp/CODEC-MODEL-seedN)
#   --seed N             of a split that is drawn, training and samples (default 0)
#   --stage N            first stage to run (default 0)
#   --stop-stage M       last stage to run (default 9)
#   --dry-run            print what each stage would run, and run nothing
#
# Stages: 0 set up, 1 prepare (see prepare.sh), 2 train the recogniser, 3 align texts and codes by it,
# 4 train the model (5 its second stage), 6 say the sentences, 7 recognize them, real recordings
# first, 8 judge them, 9 report. The same command resumes where it was interrupted.

# To be sourced once the default of --max-seconds is set. The recipe sets --train-minutes and
# --listen-minutes that were not given, then enter_experiment; learn_to_speak and the stages of recipe.sh
# follow.
stage=0
stop_stage=9
dry_run=false
quick=false
model='codec-lm'
train_stage=0
config=
train_minutes=
listen_minutes=
codec=facebook/encodec_24khz
corpus_dir=
prepare=
sentences=
judge=
say="The old captain carried seven green lanterns home."
data_dir=
exp_dir=
seed=0
option_files=("${BASH_SOURCE[0]}")
source "$here/../shared/recipe.sh"
if $quick; then train_minutes=${train_minutes:-0.3} listen_minutes=${listen_minutes:-0.2}; fi

# enter_experiment CONFIG: checks --model and --train-stage and sets what was not given: configuration
# (conf/MODEL.yaml, of codec-lm CONFIG), folders, $longest, the seconds of a sample, and the sizes of
# --quick: $tiny of a recogniser, $small of a model.
enter_experiment() {
  case $model in
    codec-lm) local default=$1 ;;
    valle | masked) local default=conf/$model.yaml ;;
    *) option_error "--model $model is none of codec-lm, valle and masked" ;;
  esac
  [[ $train_stage == 0 || ($train_stage == "1 2" && $model == valle) ]] ||
    option_error "--train-stage is 0, or of valle \"1 2\"; not '$train_stage'"
  require_number train_minutes listen_minutes max_seconds
  require_integer seed ${sentences:+sentences} ${judge:+judge}
  enter_recipe corpus_dir exp_dir data_dir config ${voice:+voice}
  config=${config:-$default} longest=$max_seconds small=() tiny=()
  local name
  name=$(basename "$codec")
  if $quick; then
    [[ -z $corpus_dir ]] || option_error "--quick makes a corpus: no --corpus-dir"
    name=stand-in longest=5 prepare="--stand-in $prepare" sentences=${sentences:-2} judge=${judge:-1}
    tiny=(--size tiny --decoder-dim 64 --nhead 2 --num-decoder-layers 2 --valid-every-minutes 0.2)
    small=("${tiny[@]}" --num-encoder-layers 1 --accum 1)
  fi
  data_dir=${data_dir:-$PWD/data/$name} sentences=${sentences:-32} judge=${judge:-16}
  exp_dir=${exp_dir:-exp/$name-$model-seed$seed}
  if $quick; then export RVQLM_CODECS=$data_dir/codecs; fi
}

# learn_to_speak: stages 0 to 5.
learn_to_speak() {
  set_up 0
  # $prepare is words
  # shellcheck disable=SC2086
  prepare_data 1 --codec "$codec" ${corpus_dir:+--corpus-dir "$corpus_dir"} $prepare
  local flags=(--filter-max-duration "$max_seconds")
  train_recognizer 2 "${flags[@]}" "${tiny[@]}"
  align_texts 3
  flags+=("${small[@]}")
  if [[ $train_stage == 0 ]]; then
    train_model 4 "${flags[@]}"
  else
    train_model 4 "${flags[@]}" --train-stage 1
    train_model 5 "${flags[@]}" --train-stage 2
  fi
}
