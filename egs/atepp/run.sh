#!/usr/bin/env bash
# Piano of ATEPP, all the way: tokens, a model, new audio of held-out pieces, one page.
#
#   ./egs/atepp/run.sh --quick                    a stand-in and a tiny model: to see that all works
#   ./egs/atepp/run.sh --corpus-dir ATEPP-1.2 --audio-dir recordings        for a GPU
#   ./egs/atepp/run.sh --quick --task midi        audio from MIDI files instead of continuations
#
#   --quick            a synthesiser instead of the corpus, a random codec, a tiny model, offline, a
#                      minute of one core: nothing to hear
#   --task TASK        continue (default): held-out performances are continued and new ones made up;
#                      midi: the notes of held-out performances are played
#   --config FILE      flags of the training (default conf/audio_lm.yaml; midi:
#                      conf/midi_to_audio.yaml)
#   --train-minutes M  end of the training before the epochs of the configuration (quick: 0.2)
#   --corpus-dir DIR   the unpacked corpus, with ATEPP-metadata-1.x.csv
#   --audio-dir DIR    the recordings, named as the MIDI files (default: recordings in --corpus-dir)
#   --codec NAME       facebook/encodec_32khz (default), or another of `rvqlm codecs`
#   --prepare OPTIONS  handed on to prepare.sh (see ./prepare.sh --help)
#   --prompt-seconds S how much of a performance is the prompt of a continuation (default 3)
#   --seconds S        longest new audio (default 10)
#   --num-samples N    samples of each kind (default 4)
#   --data-dir DIR     manifests and tokens (default data in this folder, data/whole of --task midi)
#   --exp-dir DIR      the experiment (default exp/TASK-seedN)
#   --seed N           of training and samples (default 0)
#   --stage N          first stage to run (default 0)
#   --stop-stage M     last stage to run (default 5)
#   --dry-run          print what each stage would run, and run nothing
#
# Stages: 0 set up, 1 prepare (see prepare.sh), 2 train, 3 evaluate, 4 generate, 5 report. The same
# command resumes where it was interrupted.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

stage=0
stop_stage=5
dry_run=false
quick=false
task='continue'
config=
train_minutes=
corpus_dir=
audio_dir=
codec=facebook/encodec_32khz
prepare=
prompt_seconds=3
seconds=10
num_samples=4
data_dir=
exp_dir=
seed=0
source "$here/../shared/recipe.sh"
source "$here/../shared/piano.sh"
enter_experiment
set_up 0
run_piano 1
end_stage
