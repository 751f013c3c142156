# shellcheck shell=bash disable=SC2154 # variables of the script that sources it
# Numbered stages with headings and times; to be sourced after parse_options.sh.
#
#   if begin_stage 2 "Train"; then
#     rvqlm train ...
#   fi
#
# Runs the stages from $stage to $stop_stage. With `stage_log` set to a file, each finished stage
# leaves a line `number <tab> seconds <tab> title` there.
#
# With `dry_run` set to true (a recipe's --dry-run) the stages print what they would run and run
# nothing: that is so for rvqlm, python, rm, mkdir, ln and touch by themselves, and for anything else as
# `run COMMAND ARGUMENT...`; another script of stages prints its own.

require_integer stage stop_stage
((stage <= stop_stage)) || option_error "--stage $stage comes after --stop-stage $stop_stage"

log() {
  echo "$(date +%H:%M:%S)  $*"
}

# duration SECONDS: 75 -> 1 min 15 s
duration() {
  if (($1 < 60)); then echo "$1 s"; else echo "$(($1 / 60)) min $(($1 % 60)) s"; fi
}

# run COMMAND ARGUMENT...: COMMAND, or with --dry-run what it would be, on one line.
run() {
  if ! ${dry_run:-false}; then
    command "$@"
    return
  fi
  printf '    '
  printf ' %q' "$@"
  echo
}

if ${dry_run:-false}; then
  rvqlm() { run rvqlm "$@"; }
  python() { run python "$@"; }
  rm() { run rm "$@"; }
  mkdir() { run mkdir "$@"; }
  ln() { run ln "$@"; }
  touch() { run touch "$@"; }
fi

# run_stages SCRIPT OPTION...: another script in stages, which knows --dry-run itself.
run_stages() {
  if ${dry_run:-false}; then set -- "$@" --dry-run; fi
  "$@"
}

end_stage() {
  [[ -n ${current_stage:-} ]] || return 0
  if ${dry_run:-false}; then
    current_stage=
    return
  fi
  local seconds=$((SECONDS - stage_began))
  log "   done in $(duration $seconds)"
  if [[ -n ${stage_log:-} ]]; then
    mkdir -p "$(dirname "$stage_log")"
    printf '%s\t%s\t%s\n' "$current_stage" "$seconds" "$stage_title" >> "$stage_log"
  fi
  current_stage=
}

# begin_stage NUMBER TITLE: true when the stage is to be run; closes the one before.
begin_stage() {
  end_stage
  (($1 >= stage && $1 <= stop_stage)) || return 1
  current_stage=$1 stage_title=$2 stage_began=$SECONDS
  log "-- $(basename "$0") stage $1: $2"
}
