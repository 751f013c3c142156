#!/usr/bin/env bash
# Text to speech on LJSpeech, all the way: tokens, a recogniser that says when each phoneme is said, a
# model that is told so, held-out sentences and yours, their phoneme error rate, one page.
#
#   ./egs/ljspeech/run.sh --quick            a stand-in and tiny models: to see that all works
#   ./egs/ljspeech/run.sh                    downloads the corpus; for a GPU
#
#   --config FILE        flags of the training (default conf/MODEL.yaml; codec-lm:
#                        ../shared/conf/tts.yaml)
#   --train-minutes M    minutes of training of the model (default 600; quick: 0.3)
#   --listen-minutes M   minutes of training of the recogniser (default 60; quick: 0.2)
#   --max-seconds S      leave longer clips out of the training (default 20)
#   --corpus-dir DIR     LJSpeech-1.1 where you have it, or a voice of yours in its layout
#   --prepare "OPTIONS"  handed on to prepare.sh (see ./prepare.sh --help), as in
#                        --prepare "--language ru --group-by ^chapter[0-9]+"
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

max_seconds=20
source "$here/../shared/speech.sh"
train_minutes=${train_minutes:-600} listen_minutes=${listen_minutes:-60}
enter_experiment ../shared/conf/tts.yaml

learn_to_speak
say_sentences 6 "$sentences" "$longest" "$say"
recognize_samples 7
judge_speech 8
write_report 9 6
end_stage
