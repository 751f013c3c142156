# shellcheck shell=bash disable=SC2154 # variables of the script that sources it
# Options for the recipes' scripts; to be sourced after the defaults are set.
#
#   hours=6                 # a default makes `--hours N` an option ...
#   quick=false             # ... and `--quick` / `--no-quick` a switch
#   source "$here/../shared/parse_options.sh"
#
# Source it before any `cd`: it reads the script by the name it was called with.
#
# An option exists where the script's header comment documents it (`#   --hours N  ...`) and a
# variable of that name is set, dashes as underscores. `--name=value` works too. Anything else is an
# error, so a typing mistake never runs with defaults. `--help` prints the header comment. Where several
# scripts share options, `option_files` names the files whose headers document them as well.

option_error() {
  echo "$0: error: $*; see $0 --help" >&2
  exit 2
}

script_header=$(for file in "$0" "${option_files[@]}"; do sed -n '1d; /^#/!q; s/^# \{0,1\}//p' "$file"; done)

# has_option OPTION: whether a header documents it.
has_option() {
  grep -qE -e "(^|[[:space:],|])$1([[:space:],|]|\$)" <<< "$script_header"
}

while (($#)); do
  word=$1
  shift
  case $word in
    -h | --help)
      echo "$script_header"
      exit 0
      ;;
    --*) ;;
    *) option_error "unexpected argument '$word'" ;;
  esac

  option=${word%%=*}
  option_switch=true
  if [[ $option == --no-* ]] && ! has_option "$option"; then
    option_switch=false
    option=--${option#--no-}
  fi
  has_option "$option" || option_error "unknown option ${word%%=*}"
  option_name=${option#--}
  option_name=${option_name//-/_}
  [[ -n ${!option_name+set} ]] || option_error "$option is documented but has no default (a mistake in $0)"

  if [[ ${!option_name} == true || ${!option_name} == false ]]; then
    [[ $word != *=* ]] || option_error "$option is a switch and takes no value"
    printf -v "$option_name" %s $option_switch
  elif ! $option_switch; then
    option_error "unknown option ${word%%=*}"
  elif [[ $word == *=* ]]; then
    printf -v "$option_name" %s "${word#*=}"
  else
    # what holds a space is a value: options for another script
    (($#)) && [[ $1 != --* || $1 == *[[:space:]]* ]] || option_error "$option needs a value"
    printf -v "$option_name" %s "$1"
    shift
  fi
done
unset word option option_name option_switch

# require_number NAME...: stop unless each variable holds a positive number.
require_number() {
  local name
  for name in "$@"; do
    [[ ${!name} =~ ^[0-9]*\.?[0-9]+$ && ! ${!name} =~ ^0*\.?0*$ ]] \
      || option_error "--${name//_/-} '${!name}' is not a positive number"
  done
}

# require_integer NAME...: stop unless each variable holds a whole number, zero included.
require_integer() {
  local name
  for name in "$@"; do
    [[ ${!name} =~ ^[0-9]+$ ]] || option_error "--${name//_/-} '${!name}' is not a whole number"
  done
}

# absolute PATH: PATH independent of the current folder, printed.
absolute() {
  case $1 in
    /*) echo "$1" ;;
    *) echo "$PWD/$1" ;;
  esac
}

# input_name PATH: a name for what is made of an input, printed: "my music/**/*.mp3" -> my-music.
input_name() {
  local path=${1%%[*?[]*}
  path=$(absolute "${path%/}")
  if [[ -d $path ]]; then path=$(cd -- "$path" && pwd); fi # `.` and `..` have names as well
  path=$(basename -- "$path")
  path=${path%.txt}
  path=${path//[[:space:][:cntrl:]\/:*?<>|\"\'\`\$&;()#!]/-}
  echo "${path:-audio}"
}
