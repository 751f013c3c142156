# shellcheck shell=bash
# Put the environment that tools/setup.sh makes first on the PATH; to be sourced.
#
# The same choice as tools/setup.sh: PYTHON set or nothing active means the checkout's .venv, else
# the active environment stays.
if [[ -n ${PYTHON:-} || -z ${VIRTUAL_ENV:-${CONDA_PREFIX:-}} ]]; then
  rvqlm_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
  if [[ ! -x $rvqlm_root/.venv/bin/rvqlm ]]; then
    echo "$0: error: rvqlm is not installed; run tools/setup.sh first" >&2
    exit 1
  fi
  export VIRTUAL_ENV=$rvqlm_root/.venv PATH=$rvqlm_root/.venv/bin:$PATH
  unset PYTHON rvqlm_root
fi
