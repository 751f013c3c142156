# The data configuration in scripts, and intermediates that are removed; to be sourced.
#
#   read_data conf/data.yaml "$keep" "$corpus"   # then "${data[n_shifts]}"
#   dl=$(place dl_dir)                           # DATA_DIR/1_download
#   if ! discarded dl && begin_stage 2 "..."; then
#     ...
#     discard dl "$dl"                           # unless it is to be kept
#   fi
#
# That something was discarded, and with which settings it had been made, is remembered by an empty file
# in $data_dir. What led to it is not run again; with other settings that is an error, as it could not be
# made anew from what is left.

declare -A data

# read_data FILE KEEP CORPUS: see local/data_config.py.
read_data() {
  local entries
  entries=$(command python local/data_config.py --file "$1" --keep "$2" --corpus "$3") || exit 2
  eval "$entries"
}

# place KEY: a path of the configuration, below $data_dir unless it is absolute.
place() {
  case ${data[$1]} in
    /*) echo "${data[$1]%/}" ;;
    *) echo "$data_dir/${data[$1]%/}" ;;
  esac
}

# discarded WHAT: whether it was there, complete with all that is made of it, and removed.
discarded() {
  local mark
  for mark in "$data_dir/discarded-$1"-*; do
    [[ -e $mark ]] || return 1
    [[ $mark == *"-${data[settings]}" ]] || option_error "$data_dir: $1 was discarded after it had been made" \
      "with other settings; give another --data-dir, or remove this one"
  done
}

# discard WHAT FOLDER: remove it unless it is to be kept.
discard() {
  [[ ${data[keep_$1]} == false ]] || return 0
  touch "$data_dir/discarded-$1-${data[settings]}"
  rm -rf "$2"
}
