#!/usr/bin/env bash
# The whole way on one computer: makes speech, trains one model on it that says sentences of your
# choice and continues recordings, and writes a page with audio that the model made. No GPU, no root,
# no network but for the installation.
#
#   --say TEXT           the sentence to say (default: one that is not in the corpus)
#   --quick              small models on a little speech, about two minutes: to see that all works
#   --hours H            hours of speech to make (default 2; quick: 0.3)
#   --voices "A B"       of these speakers of local/speakers.py (default m1-us: ten minutes are enough
#                        for one). Of several the model learns to tell them by a recording
#   --voice NAME         which of them says the sentence (default: the first)
#   --train-minutes M    minutes of training of the model (default 6; quick: 0.5)
#   --listen-minutes M   minutes of training of the recogniser, which says when each phoneme of the
#                        corpus is said, and counts the model's errors (default 1; quick: 0.3)
#   --sentences N        held-out sentences to say (default 16; quick: 4)
#   --judge N            recordings, and samples of them, for judges from outside to hear, release
#                        checks and a listening test (default 2; quick: 1; 0: none of it)
#   --seed N             of corpus, split, training and samples (default 0)
#   --exp-dir DIR        the experiment (default exp/Hh-Mmin-seedN, or exp/quick-seedN)
#   --data-dir DIR       corpus and tokens (default data/Hh-VOICES-seedN)
#   --stage N            first stage to run (default 0)
#   --stop-stage M       last stage to run (default 9)
#   --dry-run            print what each stage would run, and run nothing
#
# Stages: 0 set up, 1 prepare (see prepare.sh), 2 train the recogniser, 3 align texts and codes by it,
# 4 train the model, 5 evaluate it, 6 say the sentence and those of the test split, and continue its
# recordings, 7 recognize what was said, real recordings first, 8 judge it, 9 report.
# The same command resumes where it was interrupted.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

stage=0
stop_stage=9
dry_run=false
say="The old captain carried seven green lanterns home."
voice=
quick=false
hours=
voices=m1-us
train_minutes=
listen_minutes=
sentences=
judge=
seed=0
exp_dir=
data_dir=
source "$here/../shared/recipe.sh"

if $quick; then
  hours=${hours:-0.3} train_minutes=${train_minutes:-0.5} listen_minutes=${listen_minutes:-0.3}
  config=conf/tts_quick.yaml name=quick-seed$seed sentences=${sentences:-4} judge=${judge:-1}
  num_samples=2
else
  hours=${hours:-2} train_minutes=${train_minutes:-6} listen_minutes=${listen_minutes:-1}
  config=../shared/conf/tts.yaml name=${hours}h-${train_minutes}min-seed$seed sentences=${sentences:-16}
  judge=${judge:-2} num_samples=4
fi
require_number hours train_minutes listen_minutes
require_integer seed sentences judge
[[ -n $say ]] || option_error "--say is empty: give the sentence to say"
voice=${voice:-${voices%% *}}
[[ " $voices " == *" $voice "* ]] || option_error "--voice $voice is none of --voices: $voices"
enter_recipe exp_dir data_dir
exp_dir=${exp_dir:-exp/$name}
data_dir=${data_dir:-data/${hours}h-${voices// /-}-seed$seed}
several=
if [[ $voices == *" "* ]]; then several=yes; fi

# recording_of SPEAKER: one of the test split.
recording_of() {
  local id=$1-N
  $dry_run || id=$(gzip -dc "$tokens/cuts_test.jsonl.gz" | grep -o "^{\"id\": \"$1-[0-9]*" | head -n 1 | cut -d'"' -f4)
  echo "$data_dir/audio/$1/$id.wav"
}

set_up 0
prepare_data 1 --hours "$hours" --voices "$voices"
train_recognizer 2
align_texts 3
train_model 4 ${several:+--conditions text prompt --condition-prompt-seconds 1.5}
evaluate_model 5
if begin_stage 5 "Evaluate without the text"; then
  evaluate --without text ${several:+prompt}
fi
if begin_stage 6 "Speak, and continue recordings"; then
  rm -rf "$exp_dir/samples" # of an earlier training
  requests=()
  request_speech "$sentences" 12 "$say" ${several:+--voice "$(recording_of "$voice")"}
  # the sentences are about 4 s long: given half of one, the model ends it and perhaps continues
  request_continuations "$num_samples" 2 --seconds 6 --min-seconds 1 --temperature 0.9 --top-k 200
  generate "${requests[@]}"
fi
recognize_samples 7
judge_speech 8 --language en
write_report 9 6
end_stage
