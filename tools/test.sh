#!/usr/bin/env bash
# Set up, check formatting and lint, run the tests. Arguments go to pytest:
#
#   tools/test.sh                     everything, under ten minutes on two cores
#   tools/test.sh tests/data -k plan  a part
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools/setup.sh --dev
source egs/shared/environment.sh

ruff format --check .
ruff check .
python -m pytest "$@"
