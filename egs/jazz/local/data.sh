# shellcheck shell=bash disable=SC2034,SC2154 # variables of the script that sources it
# The data configuration in scripts, and intermediates that are removed; to be sourced.
#
#   declare -A data
#   read_data conf/data.yaml "$keep" "$corpus"   # then "${data[n_shifts]}"
#   dl=$(place dl_dir)                           # DATA_DIR/1_download
#   read_discarded dl:2 stems:5                  # which stage is the last that needs what
#   if ((settled < 2)) && begin_stage 2 "..."; then
#     ...
#     discard dl "$dl"                           # unless it is to be kept
#   fi
#
# That something was discarded, and with which settings it had been made, is remembered by an empty file
# in $data_dir. What led to it is not run again; with other settings that is an error, as it could not be
# made anew from what is left.

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

# read_discarded WHAT:STAGE...: sets settled to the last stage up to which there is nothing to do, as what
# these stages made, or read, was discarded once the last that needs it was complete.
read_discarded() {
  local one mark
  settled=-1
  for one in "$@"; do
    for mark in "$data_dir/discarded-${one%:*}"-*; do
      [[ -e $mark ]] || continue
      [[ $mark == *"-${data[settings]}" ]] || option_error "$data_dir: ${one%:*} was discarded after it had" \
        "been made with other settings; give another --data-dir, or remove this one"
      if ((${one#*:} > settled)); then settled=${one#*:}; fi
    done
  done
  if ((settled >= 0)); then echo "stages 0 to $settled are complete, and what they left was discarded"; fi
}

# discard WHAT FOLDER: remove it unless it is to be kept.
discard() {
  [[ ${data[keep_$1]} == false ]] || return 0
  touch "$data_dir/discarded-$1-${data[settings]}"
  rm -rf "$2"
}
