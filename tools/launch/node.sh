#!/usr/bin/env bash
# Train on all GPUs of a machine: a process each, by torchrun. Arguments after -- are those of
# `rvqlm trainer`:
#
#   tools/launch/node.sh -- --exp-dir exp/big --manifest-dir data/tokens --parallel fsdp
#
# Ctrl-C and SIGTERM end the running step, save and stop; the same command resumes. The exit status is
# that of the rank that ended first: 143 after SIGTERM, 130 after Ctrl-C, 75 after a hang, 2 after a
# mistake in the flags.
#
# On several machines, the same on each but for --node-rank:
#
#   tools/launch/node.sh --nodes 2 --node-rank 0 --master host0:29400 -- --exp-dir ...
#
#   --nodes N       how many machines (default 1)
#   --node-rank R   which of them this is, from 0
#   --master H:P    where machine 0 waits for the others
#   --processes N   how many; all GPUs by default. Without GPUs it has to be given.
#   --restarts N    start again from latest.pt so many times when a process fails (default 0)
#   --grace S       seconds that saving may take after a signal, before the processes are killed
#                   (default 600; a torchrun that cannot be told waits 30)
#   --dry-run       print the command instead
#   --help          this text
set -euo pipefail

usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
fail() {
  echo "$0: error: $*; see $0 --help" >&2
  exit 2
}

number() { # number OPTION VALUE LEAST: a mistake here would surface much later
  if ! [[ ${2:-} =~ ^[0-9]+$ ]] || (($2 < $3)); then
    fail "$1 '${2:-}': a number, at least $3"
  fi
}

processes='' restarts=0 grace=600 nodes=1 node_rank='' master='' dry_run=false
while (($#)); do
  case $1 in
    --processes | --restarts | --grace | --nodes | --node-rank)
      least=0
      [[ $1 == --processes || $1 == --nodes ]] && least=1
      number "$1" "${2:-}" "$least"
      name=${1#--}
      printf -v "${name//-/_}" %s "$2"
      shift 2
      ;;
    --master)
      [[ ${2:-} =~ ^[^:]+:[0-9]+$ ]] || fail "--master '${2:-}': HOST:PORT"
      master=$2
      shift 2
      ;;
    --dry-run) dry_run=true && shift ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "unexpected argument '$1'; flags of the trainer come after --" ;;
  esac
done
(($#)) || fail "no flags for rvqlm trainer after --"
meeting=(--standalone)
if ((nodes > 1)); then
  [[ -n $master ]] || fail "--nodes $nodes needs --master HOST:PORT"
  [[ -n $node_rank ]] && ((node_rank < nodes)) \
    || fail "--node-rank '$node_rank': one of 0 to $((nodes - 1))"
  meeting=(--nnodes "$nodes" --node-rank "$node_rank" --master-addr "${master%:*}")
  meeting+=(--master-port "${master##*:}")
fi

if [[ -z $processes ]]; then
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    IFS=, read -ra visible <<< "$CUDA_VISIBLE_DEVICES"
    processes=${#visible[@]}
  else
    processes=$( (nvidia-smi --list-gpus || true) 2> /dev/null | wc -l)
  fi
  ((processes)) || fail "no GPU found; give --processes N to train on the CPU"
fi
command -v torchrun > /dev/null || fail "torchrun is not on the PATH; activate the environment"
command -v rvqlm > /dev/null || fail "rvqlm is not on the PATH; run tools/setup.sh, then activate"

# threads of the processes together: no more than the machine has
: "${OMP_NUM_THREADS:=$(($(nproc) / processes > 1 ? $(nproc) / processes : 1))}"
ranks=$(dirname "${BASH_SOURCE[0]}")/ranks.py
command=(python "$ranks" "${meeting[@]}" --nproc-per-node "$processes" --max-restarts "$restarts")
if [[ $(torchrun --help) == *--shutdown-timeout* ]]; then
  command+=(--shutdown-timeout "$grace")
fi
command+=(--no-python rvqlm trainer "$@")

if $dry_run; then
  printf 'OMP_NUM_THREADS=%s' "$OMP_NUM_THREADS"
  printf ' %q' "${command[@]}"
  echo
  exit 0
fi
export OMP_NUM_THREADS
exec "${command[@]}"
