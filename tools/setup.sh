#!/usr/bin/env bash
# Make the Python environment and install rvqlm into it.
#
#   tools/setup.sh          what the library and the offline recipe need
#   tools/setup.sh --dev    the same plus test tools
#   tools/setup.sh --extra jazz    the same plus what the extra of setup.py of that name lists; it can
#                                  be given several times
#
# An active environment (VIRTUAL_ENV or CONDA_PREFIX) is used as it is, and packages it already has
# stay where setup.py accepts them; otherwise .venv is made in the checkout. PYTHON=/path/to/python
# names the interpreter and comes before both. Versions come from tools/constraints.txt. Needs no
# root. Does nothing when nothing has changed since the last time.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() { echo "tools/setup.sh: error: $*" >&2; exit 1; }
say() { echo "tools/setup.sh: $*" >&2; }

wanted=(mini)
while (($#)); do
  case $1 in
    --dev) wanted[0]=dev ;;
    --extra)
      [[ ${2:-} =~ ^[a-z0-9]+$ ]] || die "--extra needs the name of an extra of setup.py"
      wanted+=("$2")
      shift
      ;;
    -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) die "unknown argument $1 (there are --dev and --extra NAME)" ;;
  esac
  shift
done

active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
if [[ -n ${PYTHON:-} || -z $active || $active == "$root/.venv" ]]; then
  active=
  env=$root/.venv
else
  env=$active
fi

# The stamp: which extras were installed, from which files, with which interpreter. "dev" also serves
# without --dev.
stamp=$env/rvqlm-setup.stamp
state="$(cat "$root/setup.py" "$root/tools/constraints.txt" "${BASH_SOURCE[0]}" | cksum) $root"
stamped_state='' stamped_python=''
if [[ -x $env/bin/python && -f $stamp ]]; then
  { read -r stamped_state && read -r stamped_python; } < "$stamp" || true
fi
wanted_python=${PYTHON:-$stamped_python}
if [[ $wanted_python == "$stamped_python" ]]; then
  installed=,${stamped_state%% *},
  lacking=()
  for extra in "${wanted[@]}"; do
    [[ $installed == *,$extra,* || $extra == mini && $installed == *,dev,* ]] || lacking+=("$extra")
  done
  if [[ ${stamped_state#* } == "$state" && ${#lacking[@]} == 0 ]]; then exit 0; fi
  for extra in ${installed//,/ }; do # what is there stays as it should be
    [[ " mini dev ${wanted[*]} " == *" $extra "* ]] || wanted+=("$extra")
  done
  if [[ $installed == *,dev,* ]]; then wanted[0]=dev; fi
fi

at_least_310() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' > /dev/null 2>&1
}

# The interpreter that .venv is made with: PYTHON, or the first good one on the PATH.
find_python() {
  local candidate
  if [[ -n ${PYTHON:-} ]]; then
    command -v "$PYTHON" > /dev/null || die "PYTHON=$PYTHON: no such program"
    at_least_310 "$PYTHON" || die "PYTHON=$PYTHON is $("$PYTHON" -V 2>&1); rvqlm needs 3.10 or newer"
    python=$PYTHON
    return
  fi
  for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
    if command -v "$candidate" > /dev/null && at_least_310 "$candidate"; then
      python=$candidate
      return
    fi
  done
  die "found no Python 3.10 or newer; install one, or name it: PYTHON=/path/to/python3 $0"
}

# venv without pip is all that some distributions ship; the interpreter's own pip then installs.
pip=("$env/bin/python" -m pip)
if [[ -n $active ]]; then
  [[ -x $env/bin/python ]] || die "the active environment $env has no bin/python; deactivate it"
  at_least_310 "$env/bin/python" \
    || die "the active environment $env is $("$env/bin/python" -V 2>&1); rvqlm needs 3.10 or newer"
  "${pip[@]}" --version > /dev/null 2>&1 || die "the active environment $env has no pip"
elif [[ $wanted_python != "$stamped_python" ]] \
  || ! { at_least_310 "$env/bin/python" && "${pip[@]}" --version > /dev/null 2>&1; }; then
  find_python
  say "making $env with $("$python" -V)"
  rm -rf "$env"
  if ! "$python" -m venv "$env" > /dev/null 2>&1; then
    rm -rf "$env"
    if "$python" -m pip --version > /dev/null 2>&1 && "$python" -m venv --without-pip "$env" 2> /dev/null; then
      pip=("$python" -m pip --python "$env/bin/python")
    elif "$python" -m virtualenv --quiet "$env" 2> /dev/null; then
      :
    else
      rm -rf "$env"
      die "$python can't make environments; install its venv module (python3-venv on Debian and" \
        "Ubuntu) or name another interpreter: PYTHON=/path/to/python3 $0"
    fi
  fi
fi

constraints=$root/tools/constraints.txt
extras=$(IFS=,; echo "${wanted[*]}")
if [[ -n $active ]]; then
  # somebody's own environment: pin only what it lacks
  constraints=$(mktemp)
  trap 'rm -f "$constraints"' EXIT
  "$env/bin/python" - "$root/tools/constraints.txt" > "$constraints" << 'END'
import re, sys
from importlib.metadata import distributions

def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()

present = {plain(d.metadata["Name"]) for d in distributions() if d.metadata["Name"]}
for line in open(sys.argv[1], encoding="utf-8"):
    if line[0] != "#" and plain(line.split("==")[0]) not in present:
        print(line, end="")
END
fi

say "installing rvqlm[$extras] into $env (a few minutes the first time)"
rm -f "$stamp"
"${pip[@]}" install --quiet --disable-pip-version-check -c "$constraints" -e "${root}[$extras]"
printf '%s\n%s\n' "$extras $state" "$wanted_python" > "$stamp"
say "done"
