# shellcheck shell=bash disable=SC2034,SC2154,SC2164 # variables of the script that sources it, which stops at errors
# What the run.sh of all recipes have in common: options, folders, and the stages that are the same
# everywhere. To be sourced once the defaults are set. All that a recipe has to say of its own, below
# its header comment (which documents the options) and the defaults of its options:
#
#   source "$here/../shared/recipe.sh"
#   enter_recipe exp_dir data_dir
#   exp_dir=${exp_dir:-exp/mine} data_dir=${data_dir:-data/mine} config=conf/mine.yaml
#   set_up 0
#   prepare_data 1
#   train_model 2
#   evaluate_model 3
#   generate_samples 4 4 3 --seconds 8
#   judge_samples 5
#   write_report 6 4
#   end_stage
#
# They read $here, $seed, $config, $exp_dir, $data_dir, $train_minutes and $judge; the first argument is
# the number of the stage. Of text to speech there are train_recognizer, align_texts, say_sentences and
# recognize_samples, which read $listen_minutes as well. With `checkpoint=latest` the last weights of a
# training speak in place of the best.

source "$here/../shared/parse_options.sh"
source "$here/../shared/stages.sh"

# enter_recipe NAME...: these variables hold paths, relative to where the command was given if they
# are not empty; all else happens in the folder of the recipe, $recipe.
enter_recipe() {
  local name
  for name in "$@"; do
    if [[ -n ${!name} ]]; then printf -v "$name" %s "$(absolute "${!name}")"; fi
  done
  called_from=$PWD
  cd "$here"
  recipe=$PWD
}

# set_up STAGE [OPTION...]: the environment, made where it is missing (with options of tools/setup.sh) and
# entered in any case.
set_up() {
  tokens=$data_dir/tokens
  stage_log=$exp_dir/stages.tsv
  if begin_stage "$1" "Set up"; then
    run ../../tools/setup.sh "${@:2}"
  fi
  if ! ${dry_run:-false}; then source ../shared/environment.sh; fi
}

# prepare_data STAGE [OPTION...]: prepare.sh of the recipe; paths among the options are relative to where
# the command was given.
prepare_data() {
  if begin_stage "$1" "Prepare the data"; then
    local data
    data=$(absolute "$data_dir")
    (cd "$called_from" && run_stages "$recipe/prepare.sh" --data-dir "$data" --seed "$seed" "${@:2}")
  fi
}

# train_model STAGE [FLAG...]: $config on the tokens for $train_minutes, where that is empty for as long
# as the configuration itself says.
train_model() {
  if begin_stage "$1" "Train"; then
    rvqlm train --config "$config" --manifest-dir "$tokens" --exp-dir "$exp_dir" \
      ${train_minutes:+--max-minutes "$train_minutes"} --seed "$seed" "${@:2}"
  fi
}

# evaluate FLAG...: nats per code and bits per second of the test split with their intervals, beside what
# needs no training.
evaluate() {
  rvqlm evaluate --exp-dir "$exp_dir" --checkpoint "${checkpoint:-best}" --manifest-dir "$tokens" \
    --split test "$@"
}

# evaluate_model STAGE [FLAG...]: see evaluate; and how the model fares when it listens to itself, behind
# $prompt_seconds (2) of $judge recordings.
evaluate_model() {
  local freely=()
  if ((judge)); then freely=(--free-running "$judge" --prompt-seconds "${prompt_seconds:-2}"); fi
  if begin_stage "$1" "Evaluate"; then evaluate "${freely[@]}" "${@:2}"; fi
}

# continue_recordings NUMBER PROMPT_SECONDS [FLAG...]: continuations of so many recordings of the test
# split, and as many unprompted samples.
continue_recordings() {
  requests=()
  request_continuations "$@"
  generate "${requests[@]}"
}

# request_continuations NUMBER PROMPT_SECONDS [FLAG...]: adds these to $requests, which generate makes
# with one load of the model.
request_continuations() {
  requests+=(
    --each --manifest-dir "$tokens" --split test --num-prompts "$1" --prompt-seconds "$2" "${@:3}"
    --each --num-samples "$1" "${@:3}"
  )
}

# generate FLAG...: samples of the model.
generate() {
  rvqlm generate --exp-dir "$exp_dir" --checkpoint "${checkpoint:-best}" --seed "$seed" "$@"
}

# generate_samples STAGE NUMBER PROMPT_SECONDS [FLAG...]: see continue_recordings.
generate_samples() {
  if begin_stage "$1" "Generate"; then
    rm -rf "$exp_dir/samples" # of an earlier training
    continue_recordings "${@:2}"
  fi
}

# train_recognizer STAGE [FLAG...]: what listens to the samples, for $listen_minutes.
train_recognizer() {
  if begin_stage "$1" "Train the recogniser"; then
    rvqlm train --config ../shared/conf/recognizer.yaml --manifest-dir "$tokens" \
      --exp-dir "$exp_dir/recognizer" --max-minutes "$listen_minutes" --seed "$seed" "${@:2}"
  fi
}

# align_texts STAGE: when each symbol of a text is said, by the recogniser.
align_texts() {
  if begin_stage "$1" "Align the texts"; then
    rvqlm align --manifest-dir "$tokens" --recognizer "$exp_dir/recognizer"
  fi
}

# How sentences are drawn (docs/LOG.md has what else was tried).
drawing=(--temperature 0.5 --top-k 50 --cfg-scale 3)
speaking=(--min-seconds 0.5 "${drawing[@]}")

# speak NUMBER SECONDS TEXT [FLAG...]: TEXT, with further flags; and the words of so many sentences of
# the test split, with nothing of their recordings. What takes longer than so many seconds is said in
# several parts.
speak() {
  requests=()
  request_speech "$@"
  generate "${requests[@]}"
}

# request_speech NUMBER SECONDS TEXT [FLAG...]: adds these to $requests.
request_speech() {
  if [[ -n $3 ]]; then
    requests+=(--each --text "$3" --seconds "$2" "${speaking[@]}" "${@:4}")
  fi
  requests+=(
    --each --manifest-dir "$tokens" --split test --num-prompts "$1" --prompt-seconds 0 --seconds "$2"
    "${speaking[@]}"
  )
}

# say_sentences STAGE NUMBER SECONDS TEXT [FLAG...]: bits per second of the test split; see speak.
say_sentences() {
  if begin_stage "$1" "Speak"; then
    rm -rf "$exp_dir/samples" # of an earlier training
    evaluate
    speak "${@:2}"
  fi
}

# recognize_samples STAGE: what the recogniser makes of the recordings of the test split, as their codes
# are and decoded and encoded again, and of the samples.
recognize_samples() {
  if begin_stage "$1" "Listen"; then
    rvqlm recognize --recognizer "$exp_dir/recognizer" --manifest-dir "$tokens" --split test
    rvqlm recognize --recognizer "$exp_dir/recognizer" --manifest-dir "$tokens" --split test \
      --through-audio
    rvqlm recognize --recognizer "$exp_dir/recognizer" --samples "$exp_dir/samples"
  fi
}

source "$here/../shared/judging.sh"

# write_report STAGE NUMBER: the page, with at most so many samples of a kind.
write_report() {
  if begin_stage "$1" "Report"; then
    end_stage # of the page itself nothing can be on the page
    rvqlm report --exp-dir "$exp_dir" --manifest-dir "$tokens" --num-samples "$2"
  fi
}
