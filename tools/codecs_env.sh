#!/usr/bin/env bash
# Make .venv-codecs, a second environment beside .venv in which the codecs' own packages import:
# descript-audio-codec and encodec, with torch and torchaudio 2.11 (tools/codecs_env.txt).
#
#   tools/codecs_env.sh      two minutes and 6 GB the first time; nothing when nothing changed
#
# tools/test.sh --codecs runs it. PYTHON=/path/to/python names the interpreter, else the one on the
# PATH. Removing the folder is all it takes to be rid of it.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
env=$root/.venv-codecs

die() { echo "tools/codecs_env.sh: error: $*" >&2; exit 1; }
say() { echo "tools/codecs_env.sh: $*" >&2; }

if (($#)); then sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0; fi

# what was installed, from which files
stamp=$env/rvqlm-codecs.stamp
state="$(cat "$root"/setup.py "$root"/tools/{constraints.txt,codecs_env.txt,codecs_env.sh} | cksum) $root"
if [[ -x $env/bin/python && -f $stamp && $(< "$stamp") == "$state" ]]; then exit 0; fi

rm -f "$stamp"
if ! "$env/bin/python" -m pip --version > /dev/null 2>&1; then
  say "making $env"
  rm -rf "$env"
  "${PYTHON:-python3}" -m venv "$env" \
    || die "${PYTHON:-python3} can't make environments; name another: PYTHON=/path/to/python3 $0"
fi
pip=("$env/bin/python" -m pip install --quiet --disable-pip-version-check)

say "installing the packages of tools/codecs_env.txt into $env (two minutes and 6 GB the first time)"
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
grep -v '^torch==' "$root/tools/constraints.txt" | cat - "$root/tools/codecs_env.txt" > "$constraints"
"${pip[@]}" -c "$constraints" -r "$root/tools/codecs_env.txt" -e "$root[dev]"
# last and without dependencies: descript-audiotools asks for a protobuf that today's tensorboard
# can't use, and never imports it
"${pip[@]}" --no-deps descript-audio-codec==1.0.0 descript-audiotools==0.7.2
"$env/bin/python" -c 'import dac, encodec, rvqlm' || die "the packages are installed but don't import"
printf '%s\n' "$state" > "$stamp"
say "done"
