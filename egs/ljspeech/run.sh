#!/usr/bin/env bash
# Text to speech on LJSpeech, all the way: tokens, a recogniser that says when each phoneme is said, a
# model that is told so, held-out sentences and yours, their phoneme error rate, one page.
#
#   ./egs/ljspeech/run.sh --quick            a stand-in and tiny models: to see that all works
#   ./egs/ljspeech/run.sh                    downloads the corpus; for a GPU
#
#   --quick              espeak-ng instead of the corpus, a random codec, tiny models, offline, a few
#                        minutes of one core: nothing to hear
#   --model NAME         codec-lm (default), valle or masked
#   --train-stage WORDS  of valle: 0 both networks at once (default), "1 2" one after the other, each
#                        --train-minutes long
#   --config FILE        flags of the training (default conf/MODEL.yaml; codec-lm:
#                        ../shared/conf/tts.yaml)
#   --train-minutes M    minutes of training of the model (default 600; quick: 0.3)
#   --listen-minutes M   minutes of training of the recogniser (default 60; quick: 0.2)
#   --max-seconds S      leave longer clips out of the training (default 20)
#   --codec NAME         facebook/encodec_24khz (default), descript/dac_44khz, ...
#   --corpus-dir DIR     LJSpeech-1.1 where you have it, or a voice of yours in its layout
#   --prepare "OPTIONS"  handed on to prepare.sh (see ./prepare.sh --help), as in
#                        --prepare "--language ru --group-by ^chapter[0-9]+"
#   --sentences N        held-out sentences to say (default 32; quick: 2)
#   --say TEXT           a sentence of your own
#   --data-dir DIR       tokens (default data/CODEC in this folder)
#   --exp-dir DIR        the experiment (default exp/CODEC-MODEL-seedN)
#   --seed N             of split, training and samples (default 0)
#   --stage N            first stage to run (default 0)
#   --stop-stage M       last stage to run (default 8)
#   --dry-run            print what each stage would run, and run nothing
#
# Stages: 0 set up, 1 prepare (see prepare.sh), 2 train the recogniser, 3 align texts and codes by it,
# 4 train the model (5 its second stage), 6 say the sentences, 7 recognize them, real recordings
# first, 8 report. The same command resumes where it was interrupted.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

stage=0
stop_stage=8
dry_run=false
quick=false
model='codec-lm'
train_stage=0
config=
train_minutes=
listen_minutes=
max_seconds=20
codec=facebook/encodec_24khz
corpus_dir=
prepare=
sentences=
say="The old captain carried seven green lanterns home."
data_dir=
exp_dir=
seed=0
source "$here/../shared/recipe.sh"
source "$here/../shared/speech.sh"
if $quick; then
  train_minutes=${train_minutes:-0.3} listen_minutes=${listen_minutes:-0.2} sentences=${sentences:-2}
else
  train_minutes=${train_minutes:-600} listen_minutes=${listen_minutes:-60} sentences=${sentences:-32}
fi
enter_experiment ../shared/conf/tts.yaml

set_up 0
prepare_corpus 1
train_recognizer 2 --filter-max-duration "$max_seconds" "${tiny[@]}"
align_texts 3
train_speaker 4
say_sentences 6 "$sentences" "$longest" "$say"
recognize_samples 7
write_report 8 6
end_stage
