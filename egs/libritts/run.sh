#!/usr/bin/env bash
# Text to speech on LibriTTS, all the way: tokens, a recogniser that says when each phoneme is said, a
# model that is told so and given a recording of the voice, sentences of people that it has not heard
# and yours, their phoneme error rate, one page.
#
#   ./egs/libritts/run.sh --quick            a stand-in and tiny models: to see that all works
#   ./egs/libritts/run.sh                    downloads the corpus, 78 GB; for a GPU
#
#   --quick              espeak-ng instead of the corpus, a random codec, tiny models, offline, a few
#                        minutes of one core: nothing to hear
#   --model NAME         codec-lm (default), valle or masked
#   --train-stage WORDS  of valle: 0 both networks at once (default), "1 2" one after the other, each
#                        --train-minutes long
#   --config FILE        flags of the training (default conf/MODEL.yaml)
#   --train-minutes M    minutes of training of the model (default 2880; quick: 0.3)
#   --listen-minutes M   minutes of training of the recogniser (default 240; quick: 0.2)
#   --max-seconds S      leave longer clips out of the training (default 21: 99 % are shorter)
#   --codec NAME         facebook/encodec_24khz (default), descript/dac_44khz, ...
#   --corpus-dir DIR     LibriTTS where you have it
#   --prepare "OPTIONS"  handed on to prepare.sh (see ./prepare.sh --help), as in
#                        --prepare "--parts train-clean-100,dev-clean,test-clean"
#   --sentences N        held-out sentences to say (default 32; quick: 2)
#   --say TEXT           a sentence of your own
#   --voice FILE         in the voice of this recording (default: the first of the test set)
#   --data-dir DIR       tokens (default data/CODEC in this folder)
#   --exp-dir DIR        the experiment (default exp/CODEC-MODEL-seedN)
#   --seed N             of training and samples (default 0)
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
max_seconds=21
codec=facebook/encodec_24khz
corpus_dir=
prepare=
sentences=
say="The old captain carried seven green lanterns home."
voice=
data_dir=
exp_dir=
seed=0
source "$here/../shared/recipe.sh"
source "$here/../shared/speech.sh"
if $quick; then
  train_minutes=${train_minutes:-0.3} listen_minutes=${listen_minutes:-0.2} sentences=${sentences:-2}
else
  train_minutes=${train_minutes:-2880} listen_minutes=${listen_minutes:-240} sentences=${sentences:-32}
fi
enter_experiment conf/codec_lm.yaml

# first_of_test: a recording of the test set.
first_of_test() {
  if $dry_run; then
    echo "RECORDING"
  else
    gzip -dc "$data_dir"/manifests/test-*/cuts.jsonl.gz | python -c '
import json, sys
print(json.loads(next(sys.stdin))["recording"]["sources"][0]["source"])'
  fi
}

set_up 0
prepare_corpus 1
train_recognizer 2 --filter-max-duration "$max_seconds" "${tiny[@]}"
align_texts 3
train_speaker 4
if ((stage <= 6 && stop_stage >= 6)); then voice=${voice:-$(first_of_test)}; fi
say_sentences 6 "$sentences" "$longest" "$say" --voice "$voice"
recognize_samples 7
write_report 8 6
end_stage
