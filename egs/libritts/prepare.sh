#!/usr/bin/env bash
# LibriTTS, hundreds of hours of many readers, to tokens with phonemes: downloaded, encoded, divided
# as the corpus is, and indexed.
#
#   --parts A,B            of train-clean-100, train-clean-360, train-other-500, dev-clean, dev-other,
#                          test-clean, test-other (default: all but dev-other, test-other)
#   --download-from URL    where the archives lie, if not where they are published
#   --download-dir DIR     where archives and corpus go without --corpus-dir (default data in this
#                          folder)
#   --remove-archive       do not keep an archive once it is unpacked
#   --language L           of the texts (default en-us)
#   --codec NAME           facebook/encodec_24khz (default), descript/dac_44khz, spectral or another
#                          of `rvqlm codecs`, or the path of one
#   --loudness LUFS        bring each clip to this loudness (default: -26 for spectral, else as it is)
#   --marks                keep stress and punctuation among the phonemes, for days of training
#
# Stages:
#   0 download and unpack, or make the stand-in
#   1 manifests, by lhotse's recipe, one for each part: DIR/manifests/PART
#   2 tokenize: DIR/tokens
#   3 split into train, valid (dev) and test as the corpus is, checked to be by speaker; index
#   4 phonemes of the texts
#   5 validate, print statistics
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

parts=
download_from=https://www.openslr.org/resources/60
download_dir=
remove_archive=false
language=en-us
codec=facebook/encodec_24khz
loudness=
marks=false
source "$here/../shared/corpus.sh"
usual=train-clean-100,train-clean-360,train-other-500,dev-clean,test-clean
if $stand_in; then usual=train-clean-100,dev-clean,test-clean; fi
IFS=', ' read -ra parts <<<"${parts:-$usual}"
declare -A md5=(
  [dev-clean]=0c3076c1e5245bb3f0af7d82087ee207
  [dev-other]=815555d8d75995782ac3ccd7f047213d
  [test-clean]=7bed3bdb047c4c197f1ad3bc412db59f
  [test-other]=ae3258249472a13b5abef2a816f733e4
  [train-clean-100]=4a8c202b78fe1bc0c47916a98f3a2ea8
  [train-clean-360]=a84ef10ddade5fd25df69596a2767b2d
  [train-other-500]=7b181dd5ace343a5f38427999684aa6f
)
for part in "${parts[@]}"; do
  [[ -n ${md5[$part]:-} ]] || option_error "--parts: LibriTTS has no $part"
done
enter_corpus LibriTTS "data/$(basename "$codec")"
tokens=$data_dir/tokens
if [[ -z $loudness && $codec == spectral ]]; then loudness=-26; fi # docs/codecs.md

if begin_stage 0 "Download"; then
  if $stand_in; then
    make_stand_in --parts "${parts[@]}"
  elif ! has_corpus; then
    for part in "${parts[@]}"; do
      download "$part.tar.gz" --unpack "LibriTTS/$part" --md5 "${md5[$part]}"
    done
  fi
fi

if begin_stage 1 "Manifests"; then
  if [[ ! -t 2 ]]; then export TQDM_DISABLE=1; fi # lhotse's bars
  python local/manifests.py --corpus-dir "$corpus_dir" --out-dir "$data_dir/manifests" \
    --language "$language" --parts "${parts[@]}"
fi

manifests=()
for part in "${parts[@]}"; do manifests+=("$data_dir/manifests/$part/cuts.jsonl.gz"); done
tokenize_corpus 2 "${manifests[@]}"
split_corpus 3 --by speaker --given split
make_symbols 4
validate_corpus 5
end_stage
