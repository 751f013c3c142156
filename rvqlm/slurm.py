"""Tasks of ``srun`` as ranks of ``rvqlm train`` and ``rvqlm tokenize``: what torchrun's variables
would say, from what Slurm's say.

srun --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 --kill-on-bad-exit=1 rvqlm train ...
"""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping

_NEEDED = ("PROCID", "LOCALID", "NODEID", "JOB_ID", "STEP_ID", "STEP_NUM_TASKS", "STEP_NODELIST")


def join_step(env: MutableMapping[str, str] = os.environ) -> str:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT in `env`
    where this process is one of several tasks of a step and nobody else has set a rank. Returns a
    line that says so on the first of them, else nothing.

    An sbatch script has a SLURM_PROCID and SLURM_NTASKS, too, but no step; the shell of ``salloc``
    is a step of one task. In the shell of ``srun --ntasks 4 --pty bash`` all is as in a task of
    four, whose other shells have ended: but tasks that are to compute have no terminal.
    """
    if "RANK" in env or "WORLD_SIZE" in env or not started_by_srun(env) or os.isatty(0):
        return ""
    of = {name: env[f"SLURM_{name}"] for name in _NEEDED}
    tasks = tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", of["STEP_NUM_TASKS"]))
    env["RANK"], env["LOCAL_RANK"] = of["PROCID"], of["LOCALID"]
    env["WORLD_SIZE"] = of["STEP_NUM_TASKS"]
    env["LOCAL_WORLD_SIZE"] = str(tasks[int(of["NODEID"])])
    # not SLURM_LAUNCH_NODE_IPADDR, where srun was called: often another machine
    env.setdefault("MASTER_ADDR", first_host(of["STEP_NODELIST"]))
    # below the ports that systems give away; steps and jobs may share a machine
    port = 20000 + (31 * int(of["JOB_ID"]) + int(of["STEP_ID"])) % 12000
    env.setdefault("MASTER_PORT", str(port))
    if env["RANK"] != "0":
        return ""
    return (
        f"Slurm, step {of['JOB_ID']}.{of['STEP_ID']}: {of['STEP_NUM_TASKS']} ranks on "
        f"{of['STEP_NODELIST']}, which meet at {env['MASTER_ADDR']}:{env['MASTER_PORT']}; "
        "WORLD_SIZE=1 before a command makes it one process"
    )


def started_by_srun(env: MutableMapping[str, str] = os.environ) -> bool:
    """Whether this is one of several tasks of a step, and no process of a torchrun in one."""
    if "TORCHELASTIC_RUN_ID" in env or any(f"SLURM_{name}" not in env for name in _NEEDED):
        return False
    return int(env["SLURM_STEP_NUM_TASKS"]) > 1


def first_host(nodes: str) -> str:
    """
    >>> first_host("node[01-04,07],other"), first_host("rack1-[3,5]n[0-7]"), first_host("a,b")
    ('node01', 'rack1-3n0', 'a')
    """
    first = re.match(r"(?:\[[^]]*\]|[^,\[])+", nodes)
    return re.sub(r"\[(\d+)[^]]*\]", r"\1", first.group()) if first else nodes


def tasks_per_node(text: str) -> list[int]:
    """
    >>> tasks_per_node("4(x2),3")
    [4, 4, 3]
    """
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in found for _ in range(int(times or 1))]
