#!/usr/bin/env bash
# Your own recordings, all the way: tokens, a model trained on them, new audio, one page.
#
#   ./egs/custom/run.sh --audio my-audio                 new audio of the kind that is there
#   ./egs/custom/run.sh --audio my-voice --task tts --language en --texts my-voice/texts.tsv
#
#   --audio PATH           a folder (searched at any depth), a quoted glob such as "music/**/*.mp3",
#                          or a text file with one path a line
#   --task TASK            continue (default): recordings are continued and new ones made up;
#                          tts: texts are spoken, in the voice of the recordings
#   --train-minutes M      minutes of training (default: the epochs, steps or minutes that the
#                          configuration says; where it says none, 10; tts: 20)
#   --config FILE          flags of the training (default conf/small.yaml; conf/large.yaml is for a
#                          GPU of 12 GB, conf/rvq_*.yaml for 75 hours of music; tts: conf/voice.yaml)
#   --seconds S            longest new audio of a sample (default 6; tts: --max-seconds)
#   --num-samples N        samples of each kind (default 4; tts: 32, of which the page has 6)
#   --judge N              recordings, and samples of them, for judges from outside to hear, release
#                          checks of what speaks, a listening test (default 8; 0: none of it)
#   --prepare "OPTIONS"    options handed on to prepare.sh: codec, loudness, activity, copies,
#                          transcripts (see ./prepare.sh --help), as in
#                          --prepare "--codec descript/dac_44khz --loudness -23"
#   --name NAME            of data/NAME and exp/NAME in this folder (default: that of the input;
#                          tts: exp/NAME-tts)
#   --data-dir DIR         elsewhere than data/NAME
#   --exp-dir DIR          elsewhere than exp/NAME
#   --seed N               of split, training and samples (default 0)
#   --stage N              first stage to run (default 0)
#   --stop-stage M         last stage to run (default: the last)
#   --dry-run              print what each stage would run, and run nothing
# Task continue
#   --window-frames N      train on windows of so many frames of the codec; 0: recordings whole
#                          (default: what the configuration says, or else 10 seconds)
#   --hop-frames N         which begin every so many frames (default: half a window)
#   --prompt-seconds S     how much of a recording is the prompt of a continuation (default 2)
# Task tts
#   --language L           of the texts: en, en-gb, de, ru ...: must be given
#   --texts FILE           transcripts as a table: path <tab> text (<tab> speaker); without it, the
#                          .txt file beside each recording
#   --say TEXT             another sentence to speak, beside those of the test split
#   --voice FILE           in the voice of this recording: of several speakers (--prepare
#                          "--speaker-from folder"), each of which the model then learns to tell
#                          from a recording (default conf: conf/voices.yaml)
#   --listen-minutes M     minutes of training of the recogniser, which counts wrong phonemes
#                          (default 8)
#   --max-seconds S        leave longer recordings out of the training (default 20)
#
# Stages: 0 set up, 1 prepare (see prepare.sh), then
#   continue: 2 train, 3 evaluate, 4 generate, 5 judge, 6 report
#   tts: 2 train the recogniser, 3 align texts and codes by it, 4 train the speaking model, 5 say the
#   sentences of the test split, 6 recognize them, real recordings first, 7 judge, 8 report.
# The same command resumes where it was interrupted.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

stage=0
stop_stage=8
dry_run=false
audio=
task='continue'
train_minutes=
config=
window_frames=
hop_frames=
prompt_seconds=2
language=
texts=
say=
voice=
listen_minutes=8
max_seconds=20
seconds=
num_samples=
judge=8
prepare=
name=
data_dir=
exp_dir=
seed=0
source "$here/../shared/recipe.sh"
case $task in
  continue) defaults=(10 6 4 conf/small.yaml '') ;;
  tts) defaults=(20 "$max_seconds" 32 "conf/voice${voice:+s}.yaml" -tts) ;;
  *) option_error "--task $task is neither continue nor tts" ;;
esac
seconds=${seconds:-${defaults[1]}}
num_samples=${num_samples:-${defaults[2]}}
require_number ${train_minutes:+train_minutes} prompt_seconds seconds listen_minutes max_seconds
require_integer seed num_samples judge ${window_frames:+window_frames} ${hop_frames:+hop_frames}
[[ -n $audio ]] || option_error "--audio is missing: the folder with your recordings"
if [[ $task == tts ]]; then
  [[ -n $language ]] || option_error "--task tts needs --language: that of the texts, such as en"
  [[ -z $window_frames$hop_frames ]] || option_error "--window-frames is not for --task tts"
else
  [[ -z $language$texts$say$voice ]] ||
    option_error "--language, --texts, --say and --voice are for --task tts"
fi

name=${name:-$(input_name "$audio")}
enter_recipe audio texts voice config data_dir exp_dir
config=${config:-${defaults[3]}}
if ! grep -qE '^(num-epochs|max-steps|max-minutes):' "$config"; then
  train_minutes=${train_minutes:-${defaults[0]}}
fi
data_dir=${data_dir:-$PWD/data/$name}
exp_dir=${exp_dir:-exp/$name${defaults[4]}}

# choose_windows: window_frames and hop_frames where nobody has said them.
choose_windows() {
  if [[ -z $window_frames ]] && ! $dry_run && ! grep -qE '^(window|crop)-(frames|schedule):' "$config"; then
    window_frames=$(rvqlm info --json --max-cuts 0 "$tokens" | python -c '
import json, sys
codec = json.load(sys.stdin)["codec"]
print(round(10 * codec["sampling_rate"] / codec["hop"]))')
  fi
  if [[ -n $window_frames ]]; then hop_frames=${hop_frames:-$((window_frames / 2))}; fi
}

set_up 0
# $prepare is words
# shellcheck disable=SC2086
prepare_data 1 --audio "$audio" ${language:+--symbols phonemes --language "$language"} \
  ${texts:+--texts "$texts"} $prepare

if [[ $task == tts ]]; then
  train_recognizer 2 --filter-max-duration "$max_seconds"
  align_texts 3
  train_model 4 --filter-max-duration "$max_seconds"
  checkpoint=latest # which says more than the one of the fewest nats: docs/LOG.md, A voice of half an hour
  say_sentences 5 "$num_samples" "$seconds" "$say" ${voice:+--voice "$voice"}
  recognize_samples 6
  judge_speech 7 --language "$language"
  write_report 8 6
else
  if ((stage <= 2 && stop_stage >= 2)); then choose_windows; fi
  train_model 2 ${window_frames:+--window-frames "$window_frames" --hop-frames "$hop_frames"}
  evaluate_model 3
  generate_samples 4 "$num_samples" "$prompt_seconds" --seconds "$seconds" --min-seconds 1 \
    --temperature 0.9 --top-k 200
  judge_samples 5
  write_report 6 "$num_samples"
fi
end_stage
