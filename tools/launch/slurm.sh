#!/usr/bin/env bash
# Train on one or several machines of a Slurm cluster: a task a GPU. It submits itself; arguments
# after -- are those of `rvqlm trainer`, or, with --parts, of `rvqlm tokenize`:
#
#   tools/launch/slurm.sh --nodes 2 --gpus 8 --time 24:00:00 --partition gpu -- \
#     --exp-dir exp/big --manifest-dir data/tokens --parallel fsdp
#   tools/launch/slurm.sh --parts 1000 --parallel 50 --gpus 0 --time 4:00:00 -- \
#     --input /corpus --out-dir data/tokens
#
# Before the time is up training saves and the job is put into the queue again, where it resumes
# from latest.pt; so a week of training needs no week of queue time. When the job is preempted it
# saves too, and is queued again where the cluster's PreemptMode is REQUEUE or its PreemptParameters
# have send_user_signal. After scancel it saves, too, and that is the end.
# --parts N makes an array of N jobs, each of which tokenizes one part of the input on one machine
# with --gpus of its GPUs, and goes back into the queue in the same cases; `rvqlm combine` makes one
# of them. A cluster has a limit of tasks in an array (MaxArraySize, 1001 by default).
#
# --exp-dir has to be on a file system that all machines share. The environment in which this is
# called (PATH with rvqlm) is the job's.
#
#   --nodes N         machines (default 1)
#   --gpus N          GPUs of each (default 8; 0 with --parts is a job on CPUs)
#   --cpus N          CPU cores for a task: reading and batching (default 8)
#   --parts N         tokenize, in so many parts
#   --parallel N      jobs of the array that run at a time (default 50)
#   --time T          limit of one stretch, as Slurm writes it (default 24:00:00)
#   --grace S         seconds before the limit at which training is told to save (default 300)
#   --name NAME       of the job (default rvqlm)
#   --log FILE        output (default NAME-%j.log; %j is the number of the job)
#   --partition P, --account A, --qos Q, --constraint C
#                     as of sbatch
#   --dry-run         print the command and what it would run instead
#   --help            this text
set -euo pipefail

usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
fail() {
  echo "$0: error: $*; see $0 --help" >&2
  exit 2
}

# What every task runs. `rvqlm trainer` takes its rank from Slurm's variables. No torchrun, which
# would kill the processes half a minute after a signal, in the middle of saving.
# shellcheck disable=SC2016  # expanded by the task
task='export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
exec rvqlm trainer "$@"'
part=${task/trainer/tokenize}

run_job() {
  # the number of one job of an array is that of the whole array
  job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  job=${job:-$SLURM_JOB_ID}
  local again=false status tasks status_file
  status_file=$(mktemp) # what wait returns is not reliable when signals come
  # To this shell alone, lest scancel by the user be taken for it. A signal for a job goes to its
  # tasks.
  trap 'again=true; scancel --signal=TERM "$job"' USR1
  trap : TERM # the tasks have it too, and end by themselves
  {
    trap : USR1 TERM # this one waits to the end
    status=0
    srun --kill-on-bad-exit=1 "--cpus-per-task=$SLURM_CPUS_PER_TASK" \
      bash -c "$task" rvqlm-task "$@" || status=$?
    echo "$status" > "$status_file"
  } &
  tasks=$!
  while kill -0 "$tasks" 2> /dev/null; do
    wait "$tasks" || true # signals end the waiting, too
  done
  status=$(< "$status_file")
  : "${status:=1}" # killed
  rm -f "$status_file"
  if $again && ((status)); then
    echo "the time is nearly up (exit status $status after SIGTERM): back into the queue" >&2
    scontrol requeue "$job"
  fi
  exit "$status"
}

if [[ ${1:-} == --inside-job ]]; then
  [[ -n ${SLURM_ARRAY_TASK_ID:-} ]] && task=$part
  shift
  run_job "$@"
fi

nodes=1 gpus=8 cpus=8 time=24:00:00 grace=300 name=rvqlm log='' parts='' parallel=50
dry_run=false more=()
while (($#)); do
  case $1 in
    --nodes | --gpus | --cpus | --grace | --parts | --parallel)
      [[ ${2:-} =~ ^[1-9][0-9]*$ || "$1 ${2:-}" == '--gpus 0' ]] || fail "$1 '${2:-}': a number, at least 1"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --time | --name | --log)
      [[ -n ${2:-} ]] || fail "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --partition | --account | --qos | --constraint)
      [[ -n ${2:-} ]] || fail "$1 needs a value"
      more+=("$1=$2")
      shift 2
      ;;
    --dry-run) dry_run=true && shift ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "unexpected argument '$1'; flags of the trainer come after --" ;;
  esac
done
(($#)) || fail "no flags for rvqlm trainer after --"

((gpus)) || [[ -n $parts ]] || fail "--gpus '0': a number, at least 1, without --parts"
arguments=("$@")
if [[ -n $parts ]]; then
  ((nodes == 1)) || fail "--nodes $nodes: a part of --parts is tokenized on one machine"
  tasks=1 log=${log:-$name-%A_%a.log}
  more+=("--array=0-$((parts - 1))%$parallel")
  arguments+=(--part "auto/$parts")
else
  tasks=$gpus
fi
((gpus)) && more+=("--gpus-per-node=$gpus")

# A log that is appended to survives the return to the queue.
command=(
  sbatch "--nodes=$nodes" "--ntasks-per-node=$tasks"
  "--cpus-per-task=$cpus" "--time=$time" "--job-name=$name" "--output=${log:-$name-%j.log}"
  --open-mode=append --requeue "--signal=B:USR1@$grace" "${more[@]}"
  "${BASH_SOURCE[0]}" --inside-job "${arguments[@]}"
)
if $dry_run; then
  printf '%q ' "${command[@]}"
  if [[ -n $parts ]]; then
    printf '\n\n# each of %s jobs:\n' "$parts"
    task=$part
  else
    printf '\n\n# each of %s tasks:\n' $((nodes * gpus))
  fi
  printf '%s\n' "${task/\"\$@\"/$(printf '%q ' "${arguments[@]}")}"
  exit 0
fi
command -v sbatch > /dev/null || fail "sbatch is not on the PATH: this is no Slurm cluster"
command -v rvqlm > /dev/null || fail "rvqlm is not on the PATH; run tools/setup.sh, then activate"
exec "${command[@]}"
