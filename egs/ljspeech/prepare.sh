#!/usr/bin/env bash
# LJSpeech, 24 hours of one reader, to tokens with phonemes: downloaded, encoded, split and indexed. Or a
# voice of yours in its layout, given as --corpus-dir: metadata.csv with the columns name|text|text as it
# is said, and wavs.
#
#   --download-from URL    where the archive lies, if not where it is published
#   --download-dir DIR     where archives and corpus go without --corpus-dir (default data in this
#                          folder)
#   --remove-archive       do not keep the archive once it is unpacked
#   --language L           of the texts (default en-us)
#   --group-by REGEX       what it finds in the name of a clip is not divided between training and
#                          test (default ^LJ[0-9]+, the chapter; elsewhere each clip is by itself)
#   --valid X --test X     a share of the hours (default 0.02 each, a chapter) or a number of chapters
#   --codec NAME           facebook/encodec_24khz (default), descript/dac_44khz, spectral or another
#                          of `rvqlm codecs`, or the path of one
#   --loudness LUFS        bring each clip to this loudness (default: -26 for spectral, else as it is)
#   --marks                keep stress and punctuation among the phonemes, for days of training
#
# Stages:
#   0 download and unpack, or make the stand-in
#   1 manifests, by lhotse's recipe: DIR/manifests
#   2 tokenize: DIR/tokens
#   3 split by chapter into train, valid and test; index
#   4 phonemes of the texts
#   5 validate, print statistics
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

download_from=https://data.keithito.com/data/speech
download_dir=
remove_archive=false
language=en-us
group_by='^LJ[0-9]+'
valid=0.02
test=0.02
codec=facebook/encodec_24khz
loudness=
marks=false
source "$here/../shared/corpus.sh"
enter_corpus LJSpeech-1.1 "data/$(basename "$codec")"
tokens=$data_dir/tokens
if [[ -z $loudness && $codec == spectral ]]; then loudness=-26; fi # docs/codecs.md

if begin_stage 0 "Download"; then
  if $stand_in; then
    make_stand_in --chapters 5
  elif ! has_corpus; then
    download LJSpeech-1.1.tar.bz2 --unpack LJSpeech-1.1 --size 2748572632 \
      --sha256 be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5
  fi
fi

if begin_stage 1 "Manifests"; then
  python local/manifests.py --corpus-dir "$corpus_dir" --out "$data_dir/manifests/cuts.jsonl.gz" \
    --language "$language" --group-by "$group_by"
fi

tokenize_corpus 2 "$data_dir/manifests/cuts.jsonl.gz"
split_corpus 3 --by recording --valid "$valid" --test "$test" --seed "$seed"
make_symbols 4
validate_corpus 5
end_stage
