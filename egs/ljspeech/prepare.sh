#!/usr/bin/env bash
# LJSpeech, 24 hours of one reader, to tokens with phonemes: downloaded, encoded, split and indexed.
#
#   --corpus-dir DIR       LJSpeech-1.1, or a voice of yours in its layout (metadata.csv with the
#                          columns name|text|text as it is said, and wavs): nothing is downloaded
#                          (default LJSpeech-1.1 in that of --download-dir, downloaded where it is
#                          missing)
#   --download-from URL    where the archive lies, if not where it is published
#   --download-dir DIR     where archives and corpus go (default data in this folder)
#   --remove-archive       do not keep the archive once it is unpacked
#   --stand-in             two and a half minutes in the same layout by espeak-ng instead, and a
#                          random codec of the name: everything offline, and nothing to hear
#   --language L           of the texts (default en-us)
#   --group-by REGEX       what it finds in the name of a clip is not divided between training and
#                          test (default ^LJ[0-9]+, the chapter; elsewhere each clip is by itself)
#   --valid X --test X     a share of the hours (default 0.02 each, a chapter) or a number of chapters
#   --codec NAME           facebook/encodec_24khz (default), descript/dac_44khz, spectral or another
#                          of `rvqlm codecs`, or the path of one
#   --num-codebooks K      levels to keep, coarsest first (default: 8 of EnCodec, 9 of DAC)
#   --loudness LUFS        bring each clip to this loudness (default: -26 for spectral, else as it is)
#   --device DEVICE        of the codec: cpu, cuda or auto (default auto)
#   --marks                keep stress and punctuation among the phonemes, for days of training
#   --data-dir DIR         where everything goes (default data/CODEC in this folder; with --stand-in
#                          data/stand-in)
#   --seed N               another seed, another split (default 0)
#   --stage N              first stage to run (default 0)
#   --stop-stage M         last stage to run (default 5)
#   --dry-run              print what each stage would run, and run nothing
#
# Stages:
#   0 download and unpack, or make the stand-in
#   1 manifests, by lhotse's recipe: DIR/manifests
#   2 tokenize: DIR/tokens
#   3 split by chapter into train, valid and test; index
#   4 phonemes of the texts
#   5 validate, print statistics
#
# Each stage resumes where it was interrupted.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

stage=0
stop_stage=5
dry_run=false
corpus_dir=
download_from=https://data.keithito.com/data/speech
download_dir=
remove_archive=false
stand_in=false
language=en-us
group_by='^LJ[0-9]+'
valid=0.02
test=0.02
codec=facebook/encodec_24khz
num_codebooks=
loudness=
device=auto
marks=false
data_dir=
seed=0
source "$here/../shared/parse_options.sh"
source "$here/../shared/stages.sh"
source "$here/../shared/speech.sh"
$dry_run || source "$here/../shared/environment.sh"
require_integer seed
enter_corpus LJSpeech-1.1

if begin_stage 0 "Download"; then
  if $stand_in; then
    make_stand_in --chapters 5
  elif ! has_corpus; then
    remove=()
    if $remove_archive; then remove=(--remove-archive); fi
    python ../shared/local/download.py --url "$download_from/LJSpeech-1.1.tar.bz2" \
      --size 2748572632 \
      --sha256 be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5 \
      --out-dir "$download_dir" --unpack LJSpeech-1.1 "${remove[@]}"
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
