#!/usr/bin/env bash
# Your own recordings, all the way: tokens, a model trained on them, new audio, one page.
#
#   ./egs/custom/run.sh --audio my-audio
#
#   --audio PATH           a folder (searched at any depth), a quoted glob such as "music/**/*.mp3",
#                          or a text file with one path a line
#   --train-minutes M      minutes of training (default 10)
#   --config FILE          flags of the training (default conf/small.yaml; conf/large.yaml is for a
#                          GPU of 12 GB)
#   --window-frames N      train on windows of so many frames of the codec (default 0: recordings
#   --hop-frames N         whole), which begin every so many frames (default: half a window)
#   --prompt-seconds S     how much of a recording is the prompt of a continuation (default 2)
#   --seconds S            longest new audio of a sample (default 6)
#   --num-samples N        samples of each kind (default 4)
#   --prepare "OPTIONS"    options handed on to prepare.sh: codec, loudness, activity, copies,
#                          transcripts (see ./prepare.sh --help), as in
#                          --prepare "--codec descript/dac_44khz --loudness -23"
#   --name NAME            of data/NAME and exp/NAME in this folder (default: that of the input)
#   --data-dir DIR         elsewhere than data/NAME
#   --exp-dir DIR          elsewhere than exp/NAME
#   --seed N               of split, training and samples (default 0)
#   --stage N              first stage to run (default 0)
#   --stop-stage M         last stage to run (default 5)
#
# Stages: 0 set up, 1 prepare (see prepare.sh), 2 train, 3 evaluate, 4 generate, 5 report.
# The same command resumes where it was interrupted.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

stage=0
stop_stage=5
audio=
train_minutes=10
config=
window_frames=0
hop_frames=
prompt_seconds=2
seconds=6
num_samples=4
prepare=
name=
data_dir=
exp_dir=
seed=0
source "$here/../shared/recipe.sh"
require_number train_minutes prompt_seconds seconds
require_integer seed window_frames num_samples
[[ -n $audio ]] || option_error "--audio is missing: the folder with your recordings"
if ((window_frames)); then
  hop_frames=${hop_frames:-$((window_frames / 2))}
  require_integer hop_frames
elif [[ -n $hop_frames ]]; then
  option_error "--hop-frames goes with --window-frames"
fi

name=${name:-$(input_name "$audio")}
enter_recipe audio config data_dir exp_dir
config=${config:-conf/small.yaml}
data_dir=${data_dir:-$PWD/data/$name}
exp_dir=${exp_dir:-exp/$name}
recipe=$PWD

set_up 0
if begin_stage 1 "Prepare the data"; then
  # its options are words; paths among them are relative to where the command was given
  # shellcheck disable=SC2086
  (cd "$called_from" && "$recipe/prepare.sh" --audio "$audio" --data-dir "$data_dir" --seed "$seed" \
    $prepare)
fi
train_model 2 --window-frames "$window_frames" --hop-frames "${hop_frames:-0}"
evaluate_model 3
generate_samples 4 "$num_samples" "$prompt_seconds" --seconds "$seconds" --min-seconds 1 \
  --temperature 0.9 --top-k 200
write_report 5 "$num_samples"
end_stage
