"""Which processes of a Slurm cluster are ranks, from variables as Slurm 23 and 24 set them."""

import os

import pytest

from rvqlm.slurm import first_host, join_step, tasks_per_node

JOB = {
    **{"SLURM_JOB_ID": "40001", "SLURM_NTASKS": "7", "SLURM_JOB_NODELIST": "node[01-02]"},
    **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "bash"},
}
STEP = JOB | {
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",  # of the login node
}
TASK = STEP | {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}
ALONE = {
    "an sbatch script": JOB,
    "the shell of salloc": STEP | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
    "torchrun in a task": TASK | {"RANK": "1", "WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "x"},
    "told to be one": TASK | {"WORLD_SIZE": "1"},
    "no cluster": {},
}


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    monkeypatch.setattr(os, "isatty", lambda number: False)


@pytest.mark.parametrize("name", ALONE)
def test_one_process(name):
    env = dict(ALONE[name])
    assert join_step(env) == "" and env == ALONE[name]


def test_a_shell_of_several_tasks(monkeypatch):
    monkeypatch.setattr(os, "isatty", lambda number: number == 0)
    env = dict(STEP)
    assert join_step(env) == "" and env == STEP


def test_tasks_are_ranks():
    env = dict(TASK)
    assert join_step(env) == ""
    found = {name: value for name, value in env.items() if name not in TASK}
    assert found == {
        **{"RANK": "5", "WORLD_SIZE": "7", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3"},
        **{"MASTER_ADDR": "node01", "MASTER_PORT": str(20000 + (31 * 40001 + 1) % 12000)},
    }
    first = STEP | {"MASTER_ADDR": "ib-node01", "MASTER_PORT": "29500"}
    line = join_step(first)
    assert first["LOCAL_WORLD_SIZE"] == "4" and first["RANK"] == "0"
    assert "40001.1: 7 ranks on node[01-02], which meet at ib-node01:29500" in line


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("a,b", "a"),
        ("node[01-04,07]", "node01"),
        ("node[003,007-010],other", "node003"),
        ("login,node[01-02]", "login"),
        ("rack[1-2]-n[08,10]", "rack1-n08"),
        ("gpu-[12-13].cluster.org,x", "gpu-12.cluster.org"),
    ],
)
def test_first_host(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("text", "tasks"), [("8", [8]), ("8(x3)", [8, 8, 8]), ("4(x2),3,1(x2)", [4, 4, 3, 1, 1])]
)
def test_tasks_per_node(text, tasks):
    assert tasks_per_node(text) == tasks
