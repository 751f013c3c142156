"""tools/launch: the commands they make, and a Slurm cluster of shell scripts."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "tools" / "launch"
PROGRAMS = {
    "torchrun": "",
    "python": 'echo "$OMP_NUM_THREADS $*"',
    "nvidia-smi": "echo GPU 0; echo GPU 1; echo GPU 2",
    # a cluster of one machine with two GPUs
    "sbatch": """
while [[ $1 == --* ]]; do echo "$1" >> sbatch.txt; shift; done
export SLURM_JOB_ID=40001 SLURM_JOB_NODELIST=n1 SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2
export SLURM_CPUS_PER_TASK=3
grep -q -e --array sbatch.txt && export SLURM_ARRAY_JOB_ID=40001 SLURM_ARRAY_TASK_ID=2
cp "$1" spooled.sh; shift  # as Slurm does: the file runs from elsewhere
exec bash ./spooled.sh "$@"
""",
    "srun": """
while [[ $1 == --* ]]; do shift; done
pids=()
for n in 0 1; do SLURM_PROCID=$n SLURM_LOCALID=$n "$@" & pids+=($!); done
echo "${pids[@]}" > tasks.txt
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
exit $status
""",
    "scontrol": 'echo "$*" >> scontrol.txt',
    "scancel": """
echo "$*" >> scancel.txt
kill -TERM $(< tasks.txt)
""",
    "rvqlm": """
trap 'kill %1; exit 143' TERM
sleep 60 &
echo "${RANK:-no rank of torchrun} $OMP_NUM_THREADS $*" > "task-$SLURM_PROCID.tmp"
mv "task-$SLURM_PROCID.tmp" "task-$SLURM_PROCID.txt"
[[ $* == *quick* ]] || wait
kill %1
""",
}


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Starts a script of tools/launch in an empty folder, with the programs above on its path."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, text in PROGRAMS.items():
        (bin / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (bin / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")

    def start(script: str, *arguments: str) -> subprocess.Popen:
        pipe = subprocess.PIPE
        command = [str(LAUNCH / script), *arguments]
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)

    return start


def finished(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_node(shell, monkeypatch):
    status, out, _ = finished(shell("node.sh", "--restarts", "2", "--", "--exp-dir", "a b"))
    assert status == 0
    assert "--nproc-per-node 3 --max-restarts 2 --no-python rvqlm trainer --exp-dir a b" in out
    threads = str(max(1, len(os.sched_getaffinity(0)) // 3))
    assert f"{threads} {LAUNCH}/ranks.py --standalone" in out
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    status, out, _ = finished(shell("node.sh", "--dry-run", "--", "--exp-dir", "a b"))
    assert status == 0 and "--nproc-per-node 2" in out and out.endswith("--exp-dir a\\ b\n")


@pytest.mark.parametrize("script", ["node.sh", "slurm.sh"])
def test_usage_and_mistakes(shell, script, monkeypatch):
    status, out, _ = finished(shell(script, "--help"))
    assert status == 0 and f"tools/launch/{script}" in out and "--dry-run" in out
    option = {"node.sh": "--processes", "slurm.sh": "--gpus"}[script]
    for arguments, words in [
        ([], "no flags for rvqlm trainer"),
        ([option, "0", "--", "-x"], f"{option} '0'"),
        ([option], f"{option} ''"),
        (["--exp-dir", "x"], "unexpected argument '--exp-dir'"),
    ]:
        status, _, err = finished(shell(script, *arguments))
        assert status == 2 and words in err and len(err.splitlines()) == 1
    if script == "node.sh":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        status, _, err = finished(shell(script, "--", "-x"))
        assert status == 2 and "no GPU found; give --processes" in err


def test_slurm_runs_a_task_for_each_gpu(shell):
    job = shell("slurm.sh", "--gpus", "2", "--time", "1:00", "--", "--quick", "a b")
    status, _, err = finished(job)
    assert (status, err) == (0, "")
    options = Path("sbatch.txt").read_text().split()
    assert {"--ntasks-per-node=2", "--signal=B:USR1@300", "--requeue"} < set(options)
    for rank in range(2):
        text = Path(f"task-{rank}.txt").read_text()
        assert text == "no rank of torchrun 3 trainer --quick a b\n"
    assert not Path("scontrol.txt").exists()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_slurm_goes_back_into_the_queue(shell, number):
    """When the time is nearly up; not when somebody ends the job."""
    job = shell("slurm.sh", "--", "--exp-dir", "x")
    while not all(Path(f"task-{rank}.txt").exists() for rank in range(2)):
        assert job.poll() is None
        time.sleep(0.02)
    if number == signal.SIGTERM:
        for pid in Path("tasks.txt").read_text().split():
            os.kill(int(pid), number)
    job.send_signal(number)
    assert finished(job)[0] == 143
    if number == signal.SIGUSR1:
        assert Path("scancel.txt").read_text() == "--signal=TERM 40001\n"
        assert Path("scontrol.txt").read_text() == "requeue 40001\n"
    else:
        assert not Path("scontrol.txt").exists()


def test_slurm_array(shell):
    """A part goes back by its own number: that of one of the jobs is the whole array's."""
    job = shell("slurm.sh", "--parts", "3", "--gpus", "0", "--", "--input", "a b")
    while not all(Path(f"task-{n}.txt").exists() for n in range(2)):
        assert job.poll() is None
        time.sleep(0.02)
    assert {"--array=0-2%50", "--ntasks-per-node=1"} < set(Path("sbatch.txt").read_text().split())
    assert Path("task-0.txt").read_text().endswith(" tokenize --input a b --part auto/3\n")
    job.send_signal(signal.SIGUSR1)
    assert finished(job)[0] == 143
    assert Path("scancel.txt").read_text() == "--signal=TERM 40001_2\n"
    assert Path("scontrol.txt").read_text() == "requeue 40001_2\n"


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("node.sh", "--processes 1 --nodes 2 --node-rank 0", "needs --master"),
        ("node.sh", "--processes 1 --nodes 2 --node-rank 2 --master a:1", "one of 0 to 1"),
        ("node.sh", "--nodes 2 --master a", "--master 'a': HOST:PORT"),
        ("slurm.sh", "--gpus 0", "at least 1, without --parts"),
        ("slurm.sh", "--parts 2 --nodes 2", "tokenized on one machine"),
        ("slurm.sh", "--parts 0", "--parts '0'"),
    ],
)
def test_mistakes_of_many_machines(shell, script, arguments, words):
    status, _, err = finished(shell(script, *arguments.split(), "--", "-x"))
    assert status == 2 and words in err and len(err.splitlines()) == 1
