#!/usr/bin/env bash
# Piano of ATEPP, all the way: tokens, a model, new audio of held-out pieces, one page.
#
#   ./egs/atepp/run.sh --quick                    a stand-in and a tiny model: to see that all works
#   ./egs/atepp/run.sh --corpus-dir ATEPP-1.2 --audio-dir recordings        for a GPU
#   ./egs/atepp/run.sh --quick --task midi        audio from MIDI files instead of continuations
#
#   --audio-dir DIR    the recordings, named as the MIDI files (default: recordings in --corpus-dir)
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

audio_dir=
source "$here/../shared/piano.sh"
