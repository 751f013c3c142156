#!/usr/bin/env bash
# From a folder of audio to tokens: found, prepared, encoded, split and indexed.
#
# Input
#   --audio PATH           a folder (searched at any depth), a quoted glob such as "music/**/*.mp3",
#                          or a text file with one path a line
#   --texts FILE           transcripts as a table: path <tab> text (<tab> speaker); without it, a
#                          .txt file beside each recording is its transcript where there is one
#   --language L           of the transcripts: en, de, ru ...
#   --speaker-from WHAT    none (default), folder: the folder's name is the speaker, or a regular
#                          expression whose group names it in the path
#   --group-by WHAT        file (default), folder, or a regular expression: what must not be divided
#                          between training and test, such as the takes of one session
# Preparation of the audio (each is a stage, left out unless asked for)
#   --loudness LUFS        bring each recording to this loudness, -23 for example; none: leave it
#                          (default: -26 for the embedded codec, which hears best at that level)
#   --activity             keep only the stretches that are not silent
#   --rms-threshold X      level that counts as something, 1 is full scale (default 0.05)
#   --min-window-seconds S shortest stretch to keep (default 30)
#   --rms-frame-seconds S  time over which the level is taken (default 10)
#   --rms-stride-seconds S step of the stretches' edges (default 0.2)
#   --loudness-after LUFS  bring each recording to this loudness, measured on what --activity kept
#   --speeds "X Y"         add copies played so many times faster ("0.9 1.1"; pitch changes too)
#   --tempos "X Y"         add copies so many times faster at the same pitch
#   --semitones "X Y"      add copies so many semitones higher ("-2 2") at the same tempo
# Tokens
#   --codec NAME           spectral (default), or a codec of `rvqlm codecs`, or the path of one
#   --num-codebooks K      levels to keep, coarsest first (default: those the codec is used with)
#   --device DEVICE        of the codec: cpu, cuda or auto (default auto)
#   --valid X --test X     validation and test set: a share of the hours (default 0.05 each) or a
#                          whole number of recordings
# Symbols, for text to speech
#   --symbols TYPE         what the texts become: phonemes (in the language of --language), chars,
#                          bpe; left out unless asked for
# Work
#   --data-dir DIR         where everything goes (default data/NAME in this folder, NAME that of the
#                          input)
#   --seed N               another seed, another split (default 0)
#   --stage N              first stage to run (default 0)
#   --stop-stage M         last stage to run (default 8)
#   --dry-run              print what each stage would run, and run nothing
#
# Stages:
#   0 find the audio and its transcripts: DIR/manifests
#   1 loudness                            (unless --loudness none)
#   2 activity                            (with --activity)
#   3 loudness of what was kept           (with --loudness-after)
#   4 copies of other speed, tempo, pitch (with --speeds, --tempos, --semitones): DIR/augmented
#   5 tokenize: DIR/tokens
#   6 split into train, valid and test; index
#   7 validate, print statistics
#   8 symbols of the texts                (with --symbols)
#
# Each stage resumes where it was interrupted.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

stage=0
stop_stage=8
dry_run=false
audio=
texts=
language=
speaker_from=none
group_by='file'
loudness=
activity=false
rms_threshold=0.05
min_window_seconds=30
rms_frame_seconds=10
rms_stride_seconds=0.2
loudness_after=
speeds=
tempos=
semitones=
codec=spectral
num_codebooks=
device=auto
valid=0.05
test=0.05
symbols=
data_dir=
seed=0
source "$here/../shared/parse_options.sh"
source "$here/../shared/stages.sh"
$dry_run || source "$here/../shared/environment.sh"
require_integer seed
[[ -n $audio ]] || option_error "--audio is missing: the folder with your recordings"

# given paths are relative to where the command was given; all else happens in this folder
name=$(input_name "$audio")
audio=$(absolute "$audio")
if [[ -n $texts ]]; then texts=$(absolute "$texts"); fi
if [[ -n $data_dir ]]; then data_dir=$(absolute "$data_dir"); fi
if [[ -e $codec ]]; then codec=$(absolute "$codec"); fi
cd "$here"
data_dir=${data_dir:-$PWD/data/$name} # as run.sh gives it
manifests=$data_dir/manifests
tokens=$data_dir/tokens

if begin_stage 0 "Find the audio"; then
  rvqlm audio manifest --input "$audio" --out-dir "$manifests" ${texts:+--texts "$texts"} \
    ${language:+--language "$language"} \
    --speaker-from "$speaker_from" --group-by "$group_by"
fi

if [[ -z $loudness && $codec == spectral ]]; then loudness=-26; fi # docs/codecs.md, "The embedded codec"
if [[ $loudness == none ]]; then loudness=; fi

# each preparation reads the manifest that the one before it wrote
cuts=$manifests/cuts.jsonl.gz

if [[ -n $loudness ]]; then
  if begin_stage 1 "Loudness"; then
    rvqlm audio loudness --input "$cuts" --out "$manifests/1-loudness/cuts.jsonl.gz" \
      --target-lufs "$loudness"
  fi
  cuts=$manifests/1-loudness/cuts.jsonl.gz
fi

if $activity; then
  if begin_stage 2 "Activity"; then
    rvqlm audio activity --input "$cuts" --out "$manifests/2-activity/cuts.jsonl.gz" \
      --rms-threshold "$rms_threshold" --min-window-seconds "$min_window_seconds" \
      --rms-frame-seconds "$rms_frame_seconds" --rms-stride-seconds "$rms_stride_seconds"
  fi
  cuts=$manifests/2-activity/cuts.jsonl.gz
fi

if [[ -n $loudness_after ]]; then
  if begin_stage 3 "Loudness after activity"; then
    rvqlm audio loudness --input "$cuts" --out "$manifests/3-loudness/cuts.jsonl.gz" \
      --target-lufs "$loudness_after" --over cuts
  fi
  cuts=$manifests/3-loudness/cuts.jsonl.gz
fi

if [[ -n $speeds$tempos$semitones ]]; then
  if begin_stage 4 "Copies"; then
    # the lists are words
    # shellcheck disable=SC2086
    rvqlm audio augment --input "$cuts" --out "$manifests/4-augment/cuts.jsonl.gz" \
      --audio-dir "$data_dir/augmented" ${speeds:+--speeds $speeds} ${tempos:+--tempos $tempos} \
      ${semitones:+--semitones $semitones}
  fi
  cuts=$manifests/4-augment/cuts.jsonl.gz
fi

if begin_stage 5 "Tokenize"; then
  rvqlm tokenize --input "$cuts" --out-dir "$tokens" --codec "$codec" --device "$device" \
    ${num_codebooks:+--num-codebooks "$num_codebooks"}
fi

if begin_stage 6 "Split and index"; then
  rvqlm split --manifest-dir "$tokens" --valid "$valid" --test "$test" --seed "$seed"
  rvqlm index --manifest-dir "$tokens"
fi

if begin_stage 7 "Validate"; then
  rvqlm validate --manifest-dir "$tokens"
fi

if [[ -n $symbols ]] && begin_stage 8 "Symbols of the texts"; then
  # stress and pauses are more than minutes of training can learn; a symbol that only some held-out
  # text has is left out of it, counted
  how=(--unknown drop)
  if [[ $symbols == phonemes ]]; then how+=(--no-stress --no-punctuation); fi
  rvqlm text --manifest-dir "$tokens" --type "$symbols" ${language:+--language "$language"} "${how[@]}"
fi

end_stage
