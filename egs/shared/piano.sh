# shellcheck shell=bash disable=SC2034,SC2154 # variables of the script that sources it
#
# Options of run.sh of every recipe of recorded piano:
#   --quick            a synthesiser instead of the corpus, a random codec, a tiny model, offline, a
#                      minute of one core: nothing to hear
#   --task TASK        continue (default): held-out performances are continued and new ones made up;
#                      midi: the notes of held-out performances are played
#   --config FILE      flags of the training (default ../atepp/conf/audio_lm.yaml; midi:
#                      ../atepp/conf/midi_to_audio.yaml)
#   --train-minutes M  end of the training before the epochs of the configuration (quick: 0.2)
#   --corpus-dir DIR   the corpus where you have it unpacked
#   --codec NAME       facebook/encodec_32khz (default), or another of `rvqlm codecs`
#   --prepare OPTIONS  handed on to prepare.sh (see ./prepare.sh --help)
#   --prompt-seconds S how much of a performance is the prompt of a continuation (default 3)
#   --seconds S        longest new audio (default 10)
#   --num-samples N    samples of each kind (default 4)
#   --judge N          recordings, and samples of them, for judges from outside to hear, and a
#                      listening test (default 8; quick: 1; 0: none of it)
#   --data-dir DIR     manifests and tokens (default data in this folder, data/whole of --task midi)
#   --exp-dir DIR      the experiment (default exp/TASK-seedN)
#   --seed N           of training and samples (default 0)
#   --stage N          first stage to run (default 0)
#   --stop-stage M     last stage to run (default 6)
#   --dry-run          print what each stage would run, and run nothing
#
# Stages: 0 set up, 1 prepare (see prepare.sh), 2 train, 3 evaluate, 4 generate, 5 judge, 6 report. The same
# command resumes where it was interrupted.

# To be sourced for all of it.
stage=0
stop_stage=6
dry_run=false
quick=false
task='continue'
config=
train_minutes=
corpus_dir=
codec=facebook/encodec_32khz
prepare=
prompt_seconds=3
seconds=10
num_samples=4
judge=
data_dir=
exp_dir=
seed=0
option_files=("${BASH_SOURCE[0]}")
source "$here/../shared/recipe.sh"

case $task in
  continue) defaults=(audio_lm 10 '') ;;
  midi) defaults=(midi_to_audio 0 /whole) ;; # parts of no length: whole performances
  *) option_error "--task $task is neither continue nor midi" ;;
esac
require_number prompt_seconds seconds ${train_minutes:+train_minutes}
require_integer seed num_samples ${judge:+judge}
enter_recipe corpus_dir exp_dir data_dir config ${audio_dir:+audio_dir}
config=${config:-../atepp/conf/${defaults[0]}.yaml} small=()
prepare="--cut-seconds ${defaults[1]} $prepare"
if $quick; then
  [[ -z $corpus_dir ]] || option_error "--quick makes a corpus: no --corpus-dir"
  data_dir=${data_dir:-$PWD/data/stand-in${defaults[2]}} exp_dir=${exp_dir:-exp/quick-$task-seed$seed}
  prepare="--stand-in --device cpu $prepare" train_minutes=${train_minutes:-0.2} judge=${judge:-1}
  # scaled_adam needs some 200 steps until classifiers that begin at zero say anything
  small=(--decoder-dim 64 --nhead 2 --num-decoder-layers 2 --max-duration 40 --ema-decay 0.9
    --optimizer adamw --base-lr 0.003 --schedule cosine --warmup-steps 2
    --valid-every-minutes 0.1 --log-every-steps 5)
  export RVQLM_CODECS=$data_dir/codecs
fi
data_dir=${data_dir:-$PWD/data${defaults[2]}} exp_dir=${exp_dir:-exp/$task-seed$seed} judge=${judge:-8}

set_up 0
tokens=$data_dir/tokenized
# $prepare is words
# shellcheck disable=SC2086
prepare_data 1 --codec "$codec" ${corpus_dir:+--corpus-dir "$corpus_dir"} \
  ${audio_dir:+--audio-dir "$audio_dir"} $prepare
train_model 2 "${small[@]}"
evaluate_model 3
how=(--seconds "$seconds" --temperature 1.0 --top-k 50)
if [[ $task == continue ]]; then
  generate_samples 4 "$num_samples" "$prompt_seconds" "${how[@]}"
elif begin_stage 4 "Generate"; then
  rm -rf "$exp_dir/samples" # of an earlier training
  rvqlm generate --exp-dir "$exp_dir" --manifest-dir "$tokens" --split test --seed "$seed" \
    --num-prompts "$num_samples" --prompt-seconds 0 "${how[@]}"
fi
judge_samples 5
write_report 6 "$num_samples"
end_stage
