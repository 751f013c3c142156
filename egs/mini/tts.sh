#!/usr/bin/env bash
# Text to speech on the embedded corpus, and how well it says its words: trains a model
# recogniser, which says when each phoneme is said, and a model conditioned on phonemes at their
# times; synthesises held-out sentences and measures their phoneme error rate. Offline.
#
#   --quick              small models on a little speech, about two minutes: to see that all works
#   --hours H            hours of speech to make (default 2; quick: 0.3)
#   --voices "A B"       of these speakers of local/speakers.py (default m1-us: with one voice a few
#                        minutes of training are enough)
#   --train-minutes M    minutes of training of the speaking model (default 8; quick: 0.5)
#   --listen-minutes M   minutes of training of the recogniser (default 3; quick: 0.3)
#   --config FILE        the model (default conf/tts.yaml; quick: conf/tts_quick.yaml)
#   --sentences N        held-out sentences to say (default 32; quick: 4)
#   --judge N            recordings, and samples of them, for judges from outside to hear, release
#                        checks and a listening test (default 16; quick: 2; 0: none of it)
#   --say TEXT           a sentence of your own
#   --seed N             of corpus, split, training and samples (default 0)
#   --exp-dir DIR        the experiment (default exp/tts-Mmin-seedN, or exp/tts-quick-seedN)
#   --data-dir DIR       corpus and tokens (default data/Hh-VOICES-seedN)
#   --stage N            first stage to run (default 0)
#   --stop-stage M       last stage to run (default 8)
#   --dry-run            print what each stage would run, and run nothing
#
# Stages: 0 set up, 1 prepare (see prepare.sh), 2 train the recogniser, 3 align texts and codes by it,
# 4 train the speaking model, 5 say the sentences of the test split, and your own, 6 recognize, real
# recordings first, 7 judge, 8 report. The same command resumes where it was interrupted.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

stage=0
stop_stage=8
dry_run=false
quick=false
hours=
voices=m1-us
train_minutes=
listen_minutes=
config=
sentences=
judge=
say="The old captain carried seven green lanterns home."
seed=0
exp_dir=
data_dir=
source "$here/../shared/recipe.sh"

if $quick; then
  hours=${hours:-0.3} train_minutes=${train_minutes:-0.5} listen_minutes=${listen_minutes:-0.3}
  default_config=conf/tts_quick.yaml name=tts-quick-seed$seed sentences=${sentences:-4}
  judge=${judge:-2}
else
  hours=${hours:-2} train_minutes=${train_minutes:-8} listen_minutes=${listen_minutes:-3}
  default_config=conf/tts.yaml name=tts-${train_minutes}min-seed$seed sentences=${sentences:-32}
  judge=${judge:-16}
fi
require_number hours train_minutes listen_minutes
require_integer seed sentences judge

enter_recipe exp_dir data_dir config
config=${config:-$default_config}
exp_dir=${exp_dir:-exp/$name}
data_dir=${data_dir:-data/${hours}h-${voices// /-}-seed$seed}

set_up 0
prepare_data 1 --hours "$hours" --voices "$voices"

train_recognizer 2
align_texts 3
train_model 4
say_sentences 5 "$sentences" 12 "$say"
recognize_samples 6
judge_speech 7 --language en
write_report 8 6
end_stage
