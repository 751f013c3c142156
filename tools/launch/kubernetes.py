#!/usr/bin/env python3
"""Train or tokenize on a Kubernetes cluster.

    python tools/launch/kubernetes.py train --image registry/rvqlm:1-cuda --nodes 2 --gpus 8 -- \\
      --exp-dir s3://bucket/exp/big --manifest-dir s3://bucket/tokens
    python tools/launch/kubernetes.py tokenize --image registry/rvqlm:1-cpu --parts 1000 -- \\
      --input s3://bucket/audio --out-dir s3://bucket/tokens

train makes a TrainingRuntime and a TrainJob of Kubeflow Trainer (2.0 or newer), tokenize an indexed
Job (Kubernetes 1.29 or newer) with a part of the input for each index; rvqlm combine makes one of
them. Both are checked against the types of their API and given to `kubectl apply`.

When a pod is taken away training saves and ends with status 143: all pods start again and resume,
--restarts times. After a mistake (status 2) nothing starts again. Of a tokenization only the part
that was taken away starts again, which does not count; a part that fails is tried --restarts times.

Needs pip install -e .[kubernetes], and kubectl unless with --dry-run. Credentials of buckets are
those of a Secret (--secret) or of a service account, never part of the manifest.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launching import (
    MISTAKE,
    NODE_SH,
    Parser,
    as_yaml,
    carrying,
    checked,
    common_options,
    image_type,
    literal,
    name_type,
    number,
    pair,
    quantity_type,
    run,
    split,
    with_config,
)

from rvqlm.errors import UserError

TRAINER = "trainer.kubeflow.org"
LIMIT_OF_ARGS = 128
"""Of a TrainJob, as its CRD says."""


def main(argv: Sequence[str]) -> int:
    own, flags = split(argv)
    options = _parser().parse_args(own)
    if options.what == "train":
        documents = training(options, with_config(flags, options.config))
    else:
        documents = [tokenization(options, checked("tokenize", flags))]
    for document in documents:
        check(document)
    text = as_yaml(documents)
    if options.dry_run:
        print(text, end="")
        return 0
    if shutil.which("kubectl") is None:
        raise UserError("kubectl is not on the PATH; with --dry-run the manifest is only printed")
    return subprocess.run(["kubectl", "apply", "-f", "-"], input=text, text=True).returncode


def _parser() -> Parser:
    parser = Parser(__doc__)
    both = parser.add_subparsers(dest="what", required=True)
    for what, gpus, restarts in (("train", 8, 100), ("tokenize", 0, 3)):
        sub = both.add_parser(what, doc=f"Options for {what}; flags of rvqlm {what} come after --.")
        common_options(sub)
        add = sub.add_argument
        add("--image", type=image_type, required=True, help="of the Dockerfile, with its tag")
        if what == "train":
            add("--nodes", type=number(1), default=1, help="pods (%(default)s)")
            add("--config", type=Path, help="local YAML file of flags, which travels with the job")
        else:
            add("--parts", type=number(1), required=True, help="of the input: indexes of the Job")
            add("--parallel", type=number(1), default=50, help="pods at a time (%(default)s)")
        add("--gpus", type=number(0), default=gpus, help="of each pod (%(default)s)")
        add("--cpus", type=quantity_type, default="8", help="of each pod (%(default)s)")
        add("--memory", type=quantity_type, default="32Gi", help="of each pod (%(default)s)")
        add("--restarts", type=number(0), default=restarts, help="see above (%(default)s)")
        add("--grace", type=number(1), default=300,
            help="seconds between SIGTERM and the end, of which a spot machine may give fewer"
            " (%(default)s)")  # fmt: skip
        add("--namespace", type=name_type, default="default", help="(%(default)s)")
        add("--service-account", type=name_type, help="of the pods")
        add("--secret", type=name_type, help="a Secret whose entries are variables of the pods")
        add("--claim", type=name_type, help="a PersistentVolumeClaim of many writers, at /data")
        add("--select", type=pair, action="append", default=[], metavar="LABEL=VALUE",
            help="nodes with this label only, such as those of spot machines")  # fmt: skip
        add("--tolerate", action="append", default=[], metavar="TAINT",
            help="nodes with this taint, too")  # fmt: skip
    return parser


def training(options, flags: list[str]) -> list[dict]:
    """TrainingRuntime and TrainJob: how pods look and restart, and what they run.

    `backoffLimit` 0 fails the Job of the pods with the first of them; the JobSet then starts all of
    them again, since ranks cannot be joined later. What must not start again fails its Job by
    `podFailurePolicy`, by which the JobSet knows it.
    """
    words = [NODE_SH, "--processes", str(max(1, options.gpus)), "--grace", str(options.grace)]
    if options.nodes > 1:  # variables that Trainer gives the container
        words += ["--nodes", str(options.nodes), "--node-rank", "$(PET_NODE_RANK)"]
        words += ["--master", "$(PET_MASTER_ADDR):$(PET_MASTER_PORT)"]
    words += ["--", *map(literal, flags)]
    words, carried = carrying(words, options.config)
    if len(words) > LIMIT_OF_ARGS:
        raise UserError(
            f"{len(words)} arguments, and a TrainJob takes {LIMIT_OF_ARGS}: put flags into a file, "
            "and give it by --config before --"
        )
    job = {
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [MISTAKE]}}]
        },
        "template": _pods(options, "node", carried),
    }
    label = {"labels": {f"{TRAINER}/trainjob-ancestor-step": "trainer"}}
    mistakes = {"name": "mistakes", "action": "FailJobSet"}
    mistakes |= {"onJobFailureReasons": ["PodFailurePolicy"]}
    runtime = {
        "apiVersion": f"{TRAINER}/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": _metadata(options) | {"labels": {f"{TRAINER}/framework": "torch"}},
        "spec": {
            "mlPolicy": {"numNodes": options.nodes, "torch": {}},
            "template": {
                "spec": {
                    "failurePolicy": {"maxRestarts": options.restarts, "rules": [mistakes]},
                    "replicatedJobs": [
                        {"name": "node", "template": {"metadata": label, "spec": job}}
                    ],
                }
            },
        },
    }
    trainer = {
        "image": options.image,
        "args": words,
        "numNodes": options.nodes,
        "resourcesPerNode": _resources(options),
    }
    reference = {"apiGroup": TRAINER, "kind": "TrainingRuntime", "name": options.name}
    job = {
        "apiVersion": f"{TRAINER}/v1alpha1",
        "kind": "TrainJob",
        "metadata": _metadata(options),
        "spec": {"runtimeRef": reference, "trainer": trainer},
    }
    return [runtime, job]


def tokenization(options, flags: list[str]) -> dict:
    """An indexed Job, a part for each index."""
    pods = _pods(options, "tokenize", {})
    container = pods["spec"]["containers"][0]
    container["args"] = [
        "rvqlm",
        "tokenize",
        *map(literal, flags),
        "--part",
        f"auto/{options.parts}",
    ]
    rules = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [MISTAKE]}},
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(options),
        "spec": {
            "completionMode": "Indexed",
            "completions": options.parts,
            "parallelism": min(options.parallel, options.parts),
            "backoffLimitPerIndex": options.restarts,
            "podFailurePolicy": {"rules": rules},
            "template": pods,
        },
    }


def _metadata(options) -> dict:
    return {"name": options.name, "namespace": options.namespace}


def _resources(options) -> dict:
    amounts = {"cpu": options.cpus, "memory": options.memory}
    if options.gpus:
        amounts["nvidia.com/gpu"] = str(options.gpus)
    return {"requests": amounts.copy(), "limits": amounts.copy()}


def _pods(options, container_name: str, carried: dict[str, str]) -> dict:
    """The template of pods, its container without arguments: the image's entry point stays, lest
    rvqlm be process 1, to which signals are not delivered."""
    container = {
        "name": container_name,
        "image": options.image,
        "resources": _resources(options),
    }
    # ranks exchange data by shared memory, of which a container has 64 MB
    mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    volumes = [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
    if options.claim:
        mounts.append({"name": "data", "mountPath": "/data"})
        claim = {"claimName": options.claim}
        volumes.append({"name": "data", "persistentVolumeClaim": claim})
    container["volumeMounts"] = mounts
    if env := {key: literal(value) for key, value in options.env} | carried:
        container["env"] = [{"name": key, "value": value} for key, value in env.items()]
    if options.secret:
        container["envFrom"] = [{"secretRef": {"name": options.secret}}]
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace,
        "containers": [container],
        "volumes": volumes,
    }
    if options.service_account:
        spec["serviceAccountName"] = options.service_account
    if options.select:
        spec["nodeSelector"] = dict(options.select)
    if options.tolerate:
        spec["tolerations"] = [{"key": key, "operator": "Exists"} for key in options.tolerate]
    return {"spec": spec}


def check(document: dict) -> None:
    """Compare with the published types of the API, which take nothing they do not know.

    :raises UserError: with the field.
    """
    try:
        from kubeflow_trainer_api import models
    except ImportError:
        raise UserError(
            "the types of the API are not installed: pip install -e .[kubernetes]"
        ) from None
    types = {
        "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
        "TrainJob": models.TrainerV1alpha1TrainJob,
        "Job": models.IoK8sApiBatchV1Job,
    }
    kind = document["kind"]
    try:
        known = types[kind].from_dict(document).to_dict()
    except ValueError as e:  # pydantic's
        errors = getattr(e, "errors", list)()
        place = ".".join(str(part) for part in errors[0]["loc"]) if errors else ""
        raise UserError(f"{kind}: {place}: {errors[0]['msg'] if errors else e}") from None
    place = _difference(document, known)
    if place:
        raise UserError(f"{kind}: {place}: the API has no such field")


def _difference(given, known, place: str = "") -> str:
    """Where `known` lacks something of `given`."""
    if isinstance(given, dict) and isinstance(known, dict):
        for key, value in given.items():
            inner = f"{place}.{key}" if place else key
            if key not in known:
                return inner
            if found := _difference(value, known[key], inner):
                return found
        return ""
    if isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        found = (_difference(a, b, f"{place}[{i}]") for i, (a, b) in enumerate(zip(given, known)))
        return next((place for place in found if place), "")
    return "" if given == known else place


if __name__ == "__main__":
    sys.exit(run(main))
