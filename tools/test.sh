#!/usr/bin/env bash
# Set up, check formatting and lint, run the tests. Arguments go to pytest:
#
#   tools/test.sh                     everything, under ten minutes on two cores
#   tools/test.sh tests/data -k plan  a part
#   tools/test.sh --codecs            instead: codes and audio against the codecs' own packages, bit
#                                     for bit, in a second environment (tools/codecs_env.sh)
#   tools/test.sh --nemo              instead: the same with NVIDIA NeMo, in a third one
#   tools/test.sh --oldest            instead: the tests with the oldest releases that setup.py allows
#   tools/test.sh --cuda-simulated    instead: the tests that need a GPU, and tools/bench/gpu.py, on a
#                                     simulated one; some minutes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# files that plain pytest does not collect, for the packages are not in the usual environment
case ${1:-} in
  --codecs)
    shift
    tools/codecs_env.sh
    exec .venv-codecs/bin/python -m pytest tests/codecs_packages/check_{dac,encodec,types}.py "$@"
    ;;
  --nemo)
    shift
    tools/codecs_env.sh nemo
    exec .venv-nemo/bin/python -m pytest tests/codecs_packages/check_nemo.py "$@"
    ;;
  --oldest)
    shift
    tools/codecs_env.sh oldest
    export VIRTUAL_ENV=$PWD/.venv-oldest PATH=$PWD/.venv-oldest/bin:$PATH
    exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
    ;;
  --cuda-simulated)
    shift
    tools/setup.sh --dev
    source egs/shared/environment.sh
    python -m pytest -m cuda --cuda-simulated "$@"
    exec python tools/bench/gpu.py --simulate --seconds 1200
    ;;
esac

tools/setup.sh --dev
source egs/shared/environment.sh

ruff format --check .
ruff check .
# a worker for each core, but no more than four: each takes a few GB of memory. A file goes to one
# worker, in the order of tests/conftest.py, not those with most tests first, which are short ones
workers=$(getconf _NPROCESSORS_ONLN)
python -m pytest -n $((workers < 4 ? workers : 4)) --dist loadfile --no-loadscope-reorder "$@"
