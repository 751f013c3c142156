#!/usr/bin/env bash
# Piano of MAESTRO, all the way: tokens, a model, new audio of held-out pieces, one page.
#
#   ./egs/maestro/run.sh --quick                  a stand-in and a tiny model: to see that all works
#   ./egs/maestro/run.sh                          downloads the corpus, 101 GB; for a GPU
#   ./egs/maestro/run.sh --task midi              audio from MIDI files instead of continuations
#
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

source "$here/../shared/piano.sh"
