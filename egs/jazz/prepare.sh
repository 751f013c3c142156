#!/usr/bin/env bash
# From a playlist, or a folder of recordings, to tokens of a lead and of the rest that it plays over.
#
#   ./egs/jazz/prepare.sh --config my-data.yaml --cuda
#   ./egs/jazz/prepare.sh --corpus-dir my-jazz
#
#   --config FILE        what is done, with which numbers (default conf/data.yaml, which says what each
#                        key is for)
#   --corpus-dir DIR     recordings that are here already, in the place of the playlist (url) of the
#                        configuration; nothing in the folder is changed
#   --stand-in           a minute of a synthetic band, a random Demucs and a random codec instead: to
#                        see that all works, offline
#   --recordings N       how many recordings the stand-in has (default 5)
#   --seconds S          and how long each is (default 8)
#   --keep "WHAT"        which intermediates to keep, whatever the configuration says: all, none, or
#                        some of dl, stems, clips and aug_clips. What is not kept is removed once what
#                        is made of it is complete, and not made again
#   --cuda               separate and tokenize on a GPU; the same as --device cuda
#   --device DEVICE      cpu, cuda, cuda:N or auto (default auto)
#   --data-dir DIR       where everything goes (default data/jazz, data/stand-in in this folder)
#   --seed N             of split and shifts (default: train_test_split.seed of the configuration)
#   --jobs N             processes of what runs on CPUs; 0 (default): one a core
#   --stage N            first stage to run (default 0)
#   --stop-stage M       last stage to run (default 9)
#   --dry-run            print what each stage would run, and run nothing
#
# Stages:
#   0 fetch the playlist                         DIR/1_download
#   1 find the recordings; loudness              DIR/manifests
#   2 separate lead and rest (Demucs)            DIR/2_stems, after which 1_download may go
#   3 loudness of each
#   4 windows in which the lead plays
#   5 clips of both tracks of these windows      DIR/4_clips, after which 2_stems may go
#   6 copies of other pitch and tempo            DIR/5_aug_clips
#   7 tokenize                                   DIR/6_codes, after which clips and copies may go
#   8 split by recording, index, pair
#   9 validate, print statistics
#
# Each stage resumes where it was interrupted.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

stage=0
stop_stage=9
dry_run=false
config=conf/data.yaml
corpus_dir=
stand_in=false
recordings=5
seconds=8
keep=
cuda=false
device=auto
data_dir=
seed=
jobs=0
source "$here/../shared/parse_options.sh"
source "$here/../shared/stages.sh"
require_integer jobs recordings ${seed:+seed}
require_number seconds
[[ -z $corpus_dir || $stand_in == false ]] || option_error "--corpus-dir and --stand-in exclude each other"
if $cuda; then device=cuda; fi

# given paths are relative to where the command was given; all else happens in this folder
for name in config corpus_dir data_dir; do
  if [[ $name != config || $config != conf/data.yaml ]] && [[ -n ${!name} ]]; then
    printf -v "$name" %s "$(absolute "${!name}")"
  fi
done
cd "$here"
source ../shared/environment.sh # for the configuration, even if nothing runs
source local/data.sh
declare -A data
read_data "$config" "$keep" "$corpus_dir$($stand_in && echo "stand-in $recordings $seconds")"
seed=${seed:-${data[seed]}}
data_dir=${data_dir:-$PWD/data/$($stand_in && echo stand-in || echo jazz)} # as run.sh gives it
manifests=$data_dir/manifests
dl=$(place dl_dir) stems=$(place stems_dir) clips=$(place clips_dir) copies=$(place aug_dir)
lead=$(place codes_dir)/lead backing=$(place codes_dir)/backing
sides=(lead backing)

settled=-1
read_discarded dl:2 stems:5 clips:7 aug_clips:7

if ((stage == 0 && settled < 0)) && [[ -z $corpus_dir${data[url]} && $stand_in == false ]]; then
  option_error "$config has no url; give one there, or a folder of recordings with --corpus-dir"
fi
audio=${corpus_dir:-$dl}
if $stand_in; then
  export RVQLM_CODECS=$data_dir/stand-in/codecs
  data[weights]=$data_dir/stand-in/demucs
fi

if ((settled < 0)) && begin_stage 0 "Fetch the recordings"; then
  if $stand_in; then
    python local/stand_in.py --recordings-dir "$dl" --demucs-dir "${data[weights]}" \
      --recordings "$recordings" --seconds "$seconds" --seed "$seed"
    python ../shared/local/stand_in_codecs.py "$RVQLM_CODECS" "${data[codec]}"
  elif [[ -n $corpus_dir ]]; then
    echo "the recordings are those of $corpus_dir"
  else
    python local/fetch.py --url "${data[url]}" --out-dir "$dl"
  fi
fi

# each preparation reads the manifest that the one before it wrote
mix=$manifests/1_mix/cuts.jsonl.gz
if ((settled < 1)) && begin_stage 1 "Find the recordings"; then
  rvqlm audio manifest --input "$audio" --out-dir "$manifests/1_mix" --jobs "$jobs"
  if [[ ${data[normalize_before]} == true ]]; then # Demucs hears both channels
    rvqlm audio loudness --input "$mix" --out "$manifests/1_mix/level.jsonl.gz" \
      --target-lufs "${data[target_lufs]}" --channels 2 --jobs "$jobs"
  fi
fi
if [[ ${data[normalize_before]} == true ]]; then mix=$manifests/1_mix/level.jsonl.gz; fi

if ((settled < 2)) && begin_stage 2 "Separate lead and rest"; then
  # the sources are words
  # shellcheck disable=SC2086
  python local/separate.py --input "$mix" --audio-dir "$stems" --out-dir "$manifests/2_stems" \
    --model "${data[model]}" ${data[weights]:+--weights "${data[weights]}"} --lead ${data[lead]} \
    --n-splits "${data[n_splits]}" --n-shifts "${data[n_shifts]}" --n-jobs "${data[n_jobs]}" \
    --device "$device" --seed "$seed"
  if [[ -z $corpus_dir ]]; then discard dl "$dl"; fi
fi

tracks=$manifests/2_stems
if [[ ${data[normalize_after]} == true ]]; then
  if ((settled < 3)) && begin_stage 3 "Loudness of lead and rest"; then
    for side in "${sides[@]}"; do
      rvqlm audio loudness --input "$tracks/$side.jsonl.gz" --out "$manifests/3_level/$side.jsonl.gz" \
        --target-lufs "${data[target_lufs]}" --jobs "$jobs"
    done
  fi
  tracks=$manifests/3_level
fi

if ((settled < 4)) && begin_stage 4 "Windows in which the lead plays"; then
  for side in "${sides[@]}"; do
    other=(--partner "$tracks/backing.jsonl.gz")
    if [[ $side == backing ]]; then other=(--reference "$tracks/lead.jsonl.gz"); fi
    rvqlm audio activity --input "$tracks/$side.jsonl.gz" "${other[@]}" \
      --out "$manifests/4_windows/$side.jsonl.gz" --rms-threshold "${data[rms_threshold]}" \
      --min-window-seconds "${data[min_window_size_seconds]}" \
      --rms-frame-seconds "${data[rms_frame_length_seconds]}" \
      --rms-stride-seconds "${data[rms_stride_seconds]}" --jobs "$jobs"
  done
fi

if ((settled < 5)) && begin_stage 5 "Clips of both"; then
  python local/clips.py --lead "$manifests/4_windows/lead.jsonl.gz" \
    --backing "$manifests/4_windows/backing.jsonl.gz" --audio-dir "$clips" \
    --out-dir "$manifests/5_clips" --metadata "$(place metadata_path)" \
    --sample-rate "${data[sample_rate]}" --jobs "$jobs"
  discard stems "$stems"
fi

cuts=$manifests/5_clips
if [[ -n ${data[semitone_steps]}${data[tempo_ratios]} ]]; then
  if ((settled < 6)) && begin_stage 6 "Copies of other pitch and tempo"; then
    for side in "${sides[@]}"; do
      # the lists are words
      # shellcheck disable=SC2086
      rvqlm audio augment --input "$cuts/$side.jsonl.gz" --out "$manifests/6_copies/$side.jsonl.gz" \
        --audio-dir "$copies/$side" ${data[semitone_steps]:+--semitones ${data[semitone_steps]}} \
        ${data[tempo_ratios]:+--tempos ${data[tempo_ratios]}} \
        --n-fft "${data[n_fft]}" --hop-length "${data[hop_length]}" --jobs "$jobs"
    done
  fi
  cuts=$manifests/6_copies
fi

if ((settled < 7)) && begin_stage 7 "Tokenize"; then
  for side in "${sides[@]}"; do
    rvqlm tokenize --input "$cuts/$side.jsonl.gz" --out-dir "$(place codes_dir)/$side" \
      --codec "${data[codec]}" --num-codebooks "${data[num_codebooks]}" \
      --chunk-seconds "${data[chunk_len_s]}" --device "$device"
  done
  discard clips "$clips"
  discard aug_clips "$copies"
fi

if begin_stage 8 "Split by recording, index, pair"; then
  for side in "${sides[@]}"; do
    rvqlm split --manifest-dir "$(place codes_dir)/$side" --seed "$seed" \
      --valid "${data[val]}" --test "${data[test]}"
    rvqlm index --manifest-dir "$(place codes_dir)/$side"
  done
  rvqlm pair --manifest-dir "$lead" --source-dir "$backing"
fi

if begin_stage 9 "Validate"; then
  rvqlm validate --manifest-dir "$lead"
  rvqlm validate --manifest-dir "$backing"
fi

end_stage
