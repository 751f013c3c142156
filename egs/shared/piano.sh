# What recipes of recorded piano performances have in common, beyond recipe.sh; to be sourced after
# stages.sh.
#
# prepare.sh: enter_corpus, then make_stand_in or the corpus' own, and tokenize_piano, which read
# $data_dir, $corpus_dir, $codec, $num_codebooks, $device, $cut_seconds and $seed. run.sh:
# enter_experiment, and after set_up run_piano.

# enter_corpus NAME: the folder of the recipe, paths independent of it, and defaults.
enter_corpus() {
  local name
  for name in corpus_dir audio_dir data_dir download_dir; do
    if [[ -n ${!name:-} ]]; then printf -v "$name" %s "$(absolute "${!name}")"; fi
  done
  if [[ -e $codec ]]; then codec=$(absolute "$codec"); fi
  cd "$here"
  if $stand_in; then
    [[ -z $corpus_dir ]] || option_error "--stand-in and --corpus-dir exclude each other"
    data_dir=${data_dir:-data/stand-in}
    corpus_dir=$data_dir/$1
    export RVQLM_CODECS=$data_dir/codecs
  fi
  data_dir=${data_dir:-data}
  tokens=$data_dir/tokenized
}

# make_stand_in FOLDER: the corpus of local/stand_in.py, and a codec.
make_stand_in() {
  python local/stand_in.py --out-dir "$1" --seed "$seed"
  if [[ $codec != spectral && ! -e $RVQLM_CODECS/$codec/model.safetensors ]]; then
    python ../shared/local/stand_in_codecs.py "$RVQLM_CODECS" "$codec"
  fi
}

# tokenize_piano STAGE FLAG...: codes, splits by these flags, notes, and what is in them.
tokenize_piano() {
  if begin_stage "$1" "Tokenize"; then
    rvqlm tokenize --input "$data_dir/manifests/cuts.jsonl.gz" --out-dir "$tokens" --codec "$codec" \
      --device "$device" ${num_codebooks:+--num-codebooks "$num_codebooks"}
  fi
  if begin_stage "$(($1 + 1))" "Split and index"; then
    rvqlm split --manifest-dir "$tokens" --by recording "${@:2}"
    rvqlm index --manifest-dir "$tokens"
  fi
  if begin_stage "$(($1 + 2))" "Notes"; then
    rvqlm midi --manifest-dir "$tokens" --field custom.midi_path --skip-bad
  fi
  if begin_stage "$(($1 + 3))" "Validate"; then
    rvqlm validate --manifest-dir "$tokens"
  fi
}

# enter_experiment: for run.sh, checks --task and sets what was not given: configuration, sizes of
# --quick, folders.
enter_experiment() {
  case $task in
    continue) local default=audio_lm parts=10 place= ;;
    midi) local default=midi_to_audio parts=0 place=/whole ;;
    *) option_error "--task $task is neither continue nor midi" ;;
  esac
  require_number prompt_seconds seconds ${train_minutes:+train_minutes}
  require_integer seed num_samples
  enter_recipe corpus_dir audio_dir exp_dir data_dir config
  recipe=$PWD config=${config:-../atepp/conf/$default.yaml} small=()
  prepare="--cut-seconds $parts $prepare"
  if $quick; then
    data_dir=${data_dir:-$PWD/data/stand-in$place} exp_dir=${exp_dir:-exp/quick-$task-seed$seed}
    [[ -z $corpus_dir ]] || option_error "--quick makes a corpus: no --corpus-dir"
    prepare="--stand-in --device cpu $prepare" train_minutes=${train_minutes:-0.2}
    # scaled_adam needs some 200 steps until classifiers that begin at zero say anything
    small=(--decoder-dim 64 --nhead 2 --num-decoder-layers 2 --max-duration 40 --ema-decay 0.9
      --optimizer adamw --base-lr 0.003 --schedule cosine --warmup-steps 2
      --valid-every-minutes 0.1 --log-every-steps 5)
    export RVQLM_CODECS=$data_dir/codecs
  fi
  data_dir=${data_dir:-$PWD/data$place}
  exp_dir=${exp_dir:-exp/$task-seed$seed}
}

# run_piano STAGE: prepare, train, evaluate, generate, report.
run_piano() {
  tokens=$data_dir/tokenized
  if begin_stage "$1" "Prepare the data"; then
    # its options are words; paths among them are relative to where the command was given
    # shellcheck disable=SC2086
    (cd "$called_from" && run_stages "$recipe/prepare.sh" --data-dir "$data_dir" --seed "$seed" \
      --codec "$codec" ${corpus_dir:+--corpus-dir "$corpus_dir"} \
      ${audio_dir:+--audio-dir "$audio_dir"} $prepare)
  fi
  train_model "$(($1 + 1))" "${small[@]}"
  evaluate_model "$(($1 + 2))"
  local how=(--seconds "$seconds" --temperature 1.0 --top-k 50)
  if [[ $task == continue ]]; then
    generate_samples "$(($1 + 3))" "$num_samples" "$prompt_seconds" "${how[@]}"
  elif begin_stage "$(($1 + 3))" "Generate"; then
    rm -rf "$exp_dir/samples" # of an earlier training
    rvqlm generate --exp-dir "$exp_dir" --manifest-dir "$tokens" --split test --seed "$seed" \
      --num-prompts "$num_samples" --prompt-seconds 0 "${how[@]}"
  fi
  write_report "$(($1 + 4))" "$num_samples"
}
