# shellcheck shell=bash disable=SC2034,SC2154,SC2164 # variables of the script that sources it, which stops at errors
#
# Options of prepare.sh of every published corpus:
#   --corpus-dir DIR       the corpus where you have it unpacked: nothing is downloaded
#   --stand-in             a few minutes made here in its layout instead, and a random codec of the name:
#                          everything offline, and nothing to hear
#   --num-codebooks K      levels to keep, coarsest first (default: all)
#   --device DEVICE        of the codec: cpu, cuda or auto (default auto)
#   --data-dir DIR         where everything goes: DIR/manifests and the tokens (default data in this
#                          folder, of speech data/CODEC; with --stand-in data/stand-in)
#   --seed N               of the stand-in, and of a split that is drawn (default 0)
#   --stage N              first stage to run (default 0)
#   --stop-stage M         last stage to run (default 5)
#   --dry-run              print what each stage would run, and run nothing
#
# Each stage resumes where it was interrupted.

# To be sourced once the defaults of the recipe's own options are set, --codec among them. Then
# enter_corpus; $tokens must be set for what comes after the manifests.
stage=0
stop_stage=5
dry_run=false
corpus_dir=
stand_in=false
num_codebooks=
device=auto
data_dir=
seed=0
option_files=("${BASH_SOURCE[0]}")
source "$here/../shared/parse_options.sh"
source "$here/../shared/stages.sh"
$dry_run || source "$here/../shared/environment.sh"
require_integer seed

# enter_corpus NAME DATA: the folder of the recipe, paths independent of it, and defaults: $data_dir is
# DATA, and $corpus_dir DOWNLOAD_DIR/NAME, of a stand-in DATA_DIR/NAME; all as run.sh gives them, for
# manifests name audio by its path.
enter_corpus() {
  local name
  given_corpus=$corpus_dir
  download_dir=${download_dir:-$here/data}
  for name in corpus_dir audio_dir data_dir download_dir; do
    if [[ -n ${!name:-} ]]; then printf -v "$name" %s "$(absolute "${!name}")"; fi
  done
  if [[ -e $codec ]]; then codec=$(absolute "$codec"); fi
  cd "$here"
  if $stand_in; then
    [[ -z $given_corpus ]] || option_error "--stand-in and --corpus-dir exclude each other"
    data_dir=${data_dir:-$PWD/data/stand-in} corpus_dir=$data_dir/$1
    export RVQLM_CODECS=$data_dir/codecs
  fi
  data_dir=${data_dir:-$PWD/$2} corpus_dir=${corpus_dir:-$download_dir/$1}
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

# download ARCHIVE FLAG...: from $download_from to $download_dir, unless it is there; see download.py.
download() {
  if $remove_archive; then set -- "$@" --remove-archive; fi
  python ../shared/local/download.py --url "$download_from/$1" --out-dir "$download_dir" "${@:2}"
}

# tokenize_corpus STAGE MANIFEST...
tokenize_corpus() {
  if begin_stage "$1" "Tokenize"; then
    rvqlm tokenize --input "${@:2}" --out-dir "$tokens" --codec "$codec" --device "$device" \
      ${num_codebooks:+--num-codebooks "$num_codebooks"} ${loudness:+--loudness "$loudness"}
  fi
}

# split_corpus STAGE FLAG...: and index.
split_corpus() {
  if begin_stage "$1" "Split and index"; then
    rvqlm split --manifest-dir "$tokens" "${@:2}"
    rvqlm index --manifest-dir "$tokens"
  fi
}

# make_symbols STAGE: phonemes of the texts, in the language that the manifests name; stress and
# punctuation among them if $marks.
make_symbols() {
  if begin_stage "$1" "Symbols of the texts"; then
    local how=()
    if ! $marks; then how=(--no-stress --no-punctuation); fi
    rvqlm text --manifest-dir "$tokens" --type phonemes "${how[@]}"
  fi
}

# make_notes STAGE: of the MIDI files.
make_notes() {
  if begin_stage "$1" "Notes"; then
    rvqlm midi --manifest-dir "$tokens" --field custom.midi_path --skip-bad
  fi
}

validate_corpus() {
  if begin_stage "$1" "Validate"; then
    rvqlm validate --manifest-dir "$tokens"
  fi
}
