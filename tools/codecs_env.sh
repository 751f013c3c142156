#!/usr/bin/env bash
# Make an environment beside .venv: one in which the codecs' own packages import, or one with the
# oldest dependencies.
#
#   tools/codecs_env.sh         .venv-codecs: descript-audio-codec and encodec with torch and
#                               torchaudio 2.11 (tools/codecs_env.txt); two minutes and 6 GB
#   tools/codecs_env.sh nemo    .venv-nemo: NVIDIA NeMo (tools/codecs_env_nemo.txt); five minutes
#                               and 7 GB
#   tools/codecs_env.sh oldest  .venv-oldest: the oldest releases that setup.py allows
#                               (tools/oldest_env.txt); five minutes and 6 GB
#
# tools/test.sh --codecs, --nemo and --oldest run it. Nothing happens when nothing changed since the last time.
# PYTHON=/path/to/python names the interpreter, else python3 makes it. Removing the folder is all it
# takes to be rid of one.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() { echo "tools/codecs_env.sh: error: $*" >&2; exit 1; }
say() { echo "tools/codecs_env.sh: $*" >&2; }

case ${1:-codecs} in
  codecs) list=$root/tools/codecs_env.txt modules='dac, encodec, rvqlm' cost='two minutes and 6 GB' ;;
  nemo)
    list=$root/tools/codecs_env_nemo.txt modules='rvqlm, nemo.collections.tts.models'
    cost='five minutes and 7 GB'
    ;;
  oldest)
    list=$root/tools/oldest_env.txt modules='rvqlm, torch, transformers'
    cost='five minutes and 6 GB'
    ;;
  -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *) die "unknown argument $1 (nemo or oldest)" ;;
esac
env=$root/.venv-${1:-codecs}

# what was installed, from which files
stamp=$env/rvqlm-codecs.stamp
state="$(cat "$root/setup.py" "$root/tools/constraints.txt" "$list" "${BASH_SOURCE[0]}" | cksum) $root"
if [[ -x $env/bin/python && -f $stamp && $(< "$stamp") == "$state" ]]; then exit 0; fi

rm -f "$stamp"
if ! "$env/bin/python" -m pip --version > /dev/null 2>&1; then
  say "making $env"
  rm -rf "$env"
  "${PYTHON:-python3}" -m venv "$env" \
    || die "${PYTHON:-python3} can't make environments; name another: PYTHON=/path/to/python3 $0"
fi
install() { "$env/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

say "installing the packages of $list into $env ($cost the first time)"
if [[ $env == *-nemo ]]; then
  install -r "$list" pytest -e "$root"
elif [[ $env == *-oldest ]]; then
  install -c "$list" -e "${root}[dev]"
else
  constraints=$(mktemp)
  trap 'rm -f "$constraints"' EXIT
  grep -v '^torch==' "$root/tools/constraints.txt" | cat - "$list" > "$constraints"
  install -c "$constraints" -r "$list" -e "${root}[dev]"
  # last and without dependencies: descript-audiotools asks for a protobuf that today's tensorboard
  # can't use, and never imports it
  install --no-deps descript-audio-codec==1.0.0 descript-audiotools==0.7.2
fi
"$env/bin/python" -c "import $modules" > /dev/null 2>&1 \
  || die "the packages are installed but don't import: $env/bin/python -c 'import $modules'"
printf '%s\n' "$state" > "$stamp"
say "done"
