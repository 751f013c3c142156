#!/usr/bin/env python3
"""Train or tokenize on spot machines of whichever cloud has them, through SkyPilot.

    python tools/launch/skypilot.py train --accelerators H100:8 --nodes 2 -- \\
      --exp-dir s3://bucket/exp/big --manifest-dir s3://bucket/tokens
    python tools/launch/skypilot.py tokenize --accelerators L4:1 --part 17/1000 -- \\
      --input s3://bucket/audio --out-dir s3://bucket/tokens --device cuda

Writes one YAML file and gives it to `sky jobs launch`. A machine that is taken away is replaced, in
another region or cloud where need be, and the same command resumes; so it is after exit statuses
143, 130 and 75, any number of times, after others --restarts times. What is written has to be in a
bucket, for the disk goes with the machine. The checkout is copied and installed by tools/setup.sh.

Needs the command sky (pip install skypilot, an environment of its own is best), unless with
--dry-run. Credentials of buckets are those that sky has of the cloud.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from launching import (
    AGAIN,
    Parser,
    as_yaml,
    checked,
    common_options,
    in_shell,
    matching,
    need_remote,
    number,
    run,
    split,
)

from rvqlm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
WHY = "the disk of a spot machine goes with it"
PORT = 29400


def main(argv: Sequence[str]) -> int:
    own, flags = split(argv)
    options = _parser().parse_args(own)
    flags = checked(options.what, flags)
    need_remote(flags, "exp-dir" if options.what == "train" else "out-dir", WHY)
    text = as_yaml([task(options, flags)])
    if options.dry_run:
        print(text, end="")
        return 0
    if shutil.which("sky") is None:
        raise UserError("sky is not on the PATH: pip install skypilot; --dry-run prints the YAML")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        return subprocess.run(["sky", "jobs", "launch", "--yes", file.name]).returncode


def _parser() -> Parser:
    parser = Parser(__doc__)
    both = parser.add_subparsers(dest="what", required=True)
    accelerators = matching(
        re.compile(r"[A-Za-z][\w\-]*(:[1-9][0-9]*)?"), "a kind and how many of it, such as H100:8"
    )
    part = matching(re.compile(r"[0-9]+/[1-9][0-9]*"), "I/N, such as 17/1000")
    infra = matching(re.compile(r"[a-z0-9]+(/[\w\-*]+){0,2}"), "CLOUD/REGION/ZONE, such as aws")
    extra = matching(re.compile(r"[a-z0-9]+(,[a-z0-9]+)*"), "names with commas between")
    for what in ("train", "tokenize"):
        sub = both.add_parser(what, doc=f"Options for {what}; flags of rvqlm {what} come after --.")
        common_options(sub)
        add = sub.add_argument
        add("--accelerators", type=accelerators, help="of a machine, such as H100:8")
        if what == "train":
            add("--nodes", type=number(1), default=1, help="machines (%(default)s)")
        else:
            add("--part", type=part, help="of the input, as of rvqlm tokenize")
        add("--infra", type=infra, help="the cloud, region and zone; without it the cheapest")
        add("--on-demand", action="store_true", help="no spot machines")
        add("--disk-size", type=number(50), default=256, help="GB of each (%(default)s)")
        add("--restarts", type=number(0), default=3, help="after other failures (%(default)s)")
        add("--extra", type=extra, default="text,s3,gcs", help="of setup.py (%(default)s)")
    return parser


def task(options, flags: list[str]) -> dict:
    """The task of SkyPilot."""
    count = int((options.accelerators or ":1").partition(":")[2] or 1)
    if options.what == "train":
        command = f"tools/launch/node.sh --processes {count} --grace 60"
        if options.nodes > 1:
            command += (
                f" --nodes {options.nodes} --node-rank $SKYPILOT_NODE_RANK"
                f' --master "$(head -n 1 <<< "$SKYPILOT_NODE_IPS"):{PORT}"'
            )
        command += f" -- {in_shell(flags)}"
    else:
        part = ["--part", options.part] if options.part else []
        command = f"rvqlm tokenize {in_shell([*flags, *part])}"
    resources: dict = {"disk_size": options.disk_size, "use_spot": not options.on_demand}
    if options.accelerators:
        resources["accelerators"] = options.accelerators
    if options.infra:
        resources["infra"] = options.infra
    resources["job_recovery"] = {
        "strategy": "EAGER_NEXT_REGION",
        "max_restarts_on_errors": options.restarts,
        "recover_on_exit_codes": list(AGAIN),
    }
    extras = " ".join(f"--extra {name}" for name in options.extra.split(","))
    found = {
        "name": options.name,
        "workdir": str(ROOT),
        "num_nodes": options.nodes if options.what == "train" else 1,
        "resources": resources,
        "setup": f"tools/setup.sh {extras}\n",
        "run": f"source .venv/bin/activate\nexec {command}\n",
    }
    if options.env:
        found["envs"] = dict(options.env)
    return found


if __name__ == "__main__":
    sys.exit(run(main))
