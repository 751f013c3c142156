# shellcheck shell=bash disable=SC2034,SC2154,SC2164 # variables of the script that sources it, which stops at errors
# What recipes of published speech have in common, beyond recipe.sh; to be sourced after stages.sh.
#
# prepare.sh: enter_corpus, make_stand_in or has_corpus, then tokenize_corpus, split_corpus,
# make_symbols and validate_corpus, which read $data_dir, $codec, $num_codebooks, $loudness, $device
# and $marks. run.sh: enter_experiment, set_up, prepare_corpus, and train_speaker among the stages of
# recipe.sh.

# enter_corpus NAME: the folder of the recipe, paths independent of it, and defaults; without
# --corpus-dir the corpus is DOWNLOAD_DIR/NAME.
enter_corpus() {
  given_corpus=$corpus_dir
  if [[ -n $corpus_dir ]]; then corpus_dir=$(absolute "$corpus_dir"); fi
  if [[ -n $data_dir ]]; then data_dir=$(absolute "$data_dir"); fi
  if [[ -e $codec ]]; then codec=$(absolute "$codec"); fi
  download_dir=${download_dir:-$here/data}
  download_dir=$(absolute "$download_dir")
  cd "$here"
  if $stand_in; then
    [[ -z $given_corpus ]] || option_error "--stand-in and --corpus-dir exclude each other"
    data_dir=${data_dir:-data/stand-in} corpus_dir=$data_dir/$1
    export RVQLM_CODECS=$data_dir/codecs
  fi
  data_dir=${data_dir:-data/$(basename "$codec")}
  corpus_dir=${corpus_dir:-$download_dir/$1}
  if [[ -z $loudness && $codec == spectral ]]; then loudness=-26; fi # docs/codecs.md
}

# make_stand_in [OPTION...]: the corpus of local/stand_in.py, and a codec.
make_stand_in() {
  python local/stand_in.py --out-dir "$corpus_dir" --seed "$seed" "$@"
  if [[ $codec != spectral && ! -e $RVQLM_CODECS/$codec/model.safetensors ]]; then
    python ../shared/local/stand_in_codecs.py "$RVQLM_CODECS" "$codec"
  fi
}

# has_corpus: whether the user has said where it is.
has_corpus() {
  [[ -n $given_corpus ]] || return 1
  $dry_run || [[ -d $corpus_dir ]] || option_error "--corpus-dir $given_corpus: no such folder"
}

# tokenize_corpus STAGE MANIFEST...
tokenize_corpus() {
  if begin_stage "$1" "Tokenize"; then
    rvqlm tokenize --input "${@:2}" --out-dir "$data_dir/tokens" --codec "$codec" \
      --device "$device" ${num_codebooks:+--num-codebooks "$num_codebooks"} \
      ${loudness:+--loudness "$loudness"}
  fi
}

# split_corpus STAGE FLAG...: and index.
split_corpus() {
  if begin_stage "$1" "Split and index"; then
    rvqlm split --manifest-dir "$data_dir/tokens" "${@:2}"
    rvqlm index --manifest-dir "$data_dir/tokens"
  fi
}

# make_symbols STAGE: phonemes of the texts, in the language that the manifests name.
make_symbols() {
  if begin_stage "$1" "Symbols of the texts"; then
    local how=()
    if ! $marks; then how=(--no-stress --no-punctuation); fi
    rvqlm text --manifest-dir "$data_dir/tokens" --type phonemes "${how[@]}"
  fi
}

validate_corpus() {
  if begin_stage "$1" "Validate"; then
    rvqlm validate --manifest-dir "$data_dir/tokens"
  fi
}

# enter_experiment CONFIG: for run.sh, checks --model and --train-stage and sets what was not given:
# configuration (conf/MODEL.yaml, of codec-lm CONFIG), folders, $longest, the seconds of a
# sample, and the sizes of --quick: $tiny of a recogniser, $small of a model.
enter_experiment() {
  case $model in
    codec-lm) local default=$1 ;;
    valle | masked) local default=conf/$model.yaml ;;
    *) option_error "--model $model is none of codec-lm, valle and masked" ;;
  esac
  [[ $train_stage == 0 || ($train_stage == "1 2" && $model == valle) ]] ||
    option_error "--train-stage is 0, or of valle \"1 2\"; not '$train_stage'"
  require_number train_minutes listen_minutes max_seconds
  require_integer seed sentences
  enter_recipe corpus_dir exp_dir data_dir config ${voice+voice}
  recipe=$PWD config=${config:-$default} longest=$max_seconds small=() tiny=()
  local name
  name=$(basename "$codec")
  if $quick; then
    [[ -z $corpus_dir ]] || option_error "--quick makes a corpus: no --corpus-dir"
    name=stand-in longest=5 prepare="--stand-in $prepare"
    tiny=(--size tiny --decoder-dim 64 --nhead 2 --num-decoder-layers 2 --valid-every-minutes 0.2)
    small=("${tiny[@]}" --num-encoder-layers 1 --accum 1)
  fi
  data_dir=${data_dir:-$PWD/data/$name}
  exp_dir=${exp_dir:-exp/$name-$model-seed$seed}
  if $quick; then export RVQLM_CODECS=$data_dir/codecs; fi
}

# prepare_corpus STAGE
prepare_corpus() {
  if begin_stage "$1" "Prepare the data"; then
    # its options are words; paths among them are relative to where the command was given
    # shellcheck disable=SC2086
    (cd "$called_from" && run_stages "$recipe/prepare.sh" --data-dir "$data_dir" --seed "$seed" \
      --codec "$codec" ${corpus_dir:+--corpus-dir "$corpus_dir"} $prepare)
  fi
}

# train_speaker STAGE: of that stage and, where a valle is trained in two, of the next.
train_speaker() {
  local flags=(--filter-max-duration "$max_seconds" "${small[@]}")
  if [[ $train_stage == 0 ]]; then
    train_model "$1" "${flags[@]}"
  else
    train_model "$1" "${flags[@]}" --train-stage 1
    train_model "$(($1 + 1))" "${flags[@]}" --train-stage 2
  fi
}
