#!/usr/bin/env bash
# Text to speech on LibriTTS, all the way: tokens, a recogniser that says when each phoneme is said, a
# model that is told so and given a recording of the voice, sentences of people that it has not heard
# and yours, their phoneme error rate, one page.
#
#   ./egs/libritts/run.sh --quick            a stand-in and tiny models: to see that all works
#   ./egs/libritts/run.sh                    downloads the corpus, 78 GB; for a GPU
#
#   --config FILE        flags of the training (default conf/MODEL.yaml)
#   --train-minutes M    minutes of training of the model (default 2880; quick: 0.3)
#   --listen-minutes M   minutes of training of the recogniser (default 240; quick: 0.2)
#   --max-seconds S      leave longer clips out of the training (default 21: 99 % are shorter)
#   --corpus-dir DIR     LibriTTS where you have it
#   --prepare "OPTIONS"  handed on to prepare.sh (see ./prepare.sh --help), as in
#                        --prepare "--parts train-clean-100,dev-clean,test-clean"
#   --voice FILE         in the voice of this recording (default: the first of the test set)
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

max_seconds=21
voice=
source "$here/../shared/speech.sh"
train_minutes=${train_minutes:-2880} listen_minutes=${listen_minutes:-240}
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

learn_to_speak
if ((stage <= 6 && stop_stage >= 6)); then voice=${voice:-$(first_of_test)}; fi
say_sentences 6 "$sentences" "$longest" "$say" --voice "$voice"
recognize_samples 7
judge_speech 8
write_report 9 6
end_stage
