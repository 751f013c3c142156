#!/usr/bin/env python3
"""Train on one machine of Vertex AI.

    python tools/launch/vertex.py --project my-project --region us-central1 --bucket my-bucket \\
      --config exp/config.yaml --image us-docker.pkg.dev/my-project/rvqlm/rvqlm:1-cuda \\
      --machine-type a2-highgpu-4g --accelerator-type NVIDIA_TESLA_A100 --accelerator-count 4 \\
      --spot -- --manifest-dir gs://my-bucket/tokens

Flags of `rvqlm train` are those of --config, a local YAML file that travels with the job, and those
after --. The experiment is gs://BUCKET/NAME unless --exp-dir says otherwise.

A spot machine that is taken away, or a worker that ends with status 143 after SIGTERM, is started
again by the service within its limits, and training resumes; when the service has given up, the
same command continues.

Needs pip install -e .[vertex], and credentials of Google (gcloud auth application-default login)
unless with --dry-run, for which the job is built from the service's own types, too.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from launching import (
    NODE_SH,
    REMOTE,
    Parser,
    carrying,
    common_options,
    image_type,
    literal,
    matching,
    number,
    run,
    split,
    value_of,
    with_config,
)

from rvqlm.errors import UserError

LIMIT = 100_000
"""Characters of arguments: what the service takes, roughly."""


def main(argv: Sequence[str]) -> int:
    own, flags = split(argv)
    options = _parser().parse_args(own)
    types = _service()
    flags = _flags(options, flags)
    job = custom_job(types, options, flags)
    parent = f"projects/{options.project}/locations/{options.region}"
    request = types.CreateCustomJobRequest(parent=parent, custom_job=job)
    if options.dry_run:
        found = types.CreateCustomJobRequest.to_dict(
            request, use_integers_for_enums=False, including_default_value_fields=False
        )
        print(json.dumps(found, indent=2))
        return 0
    from google.api_core.client_options import ClientOptions
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import GoogleAuthError

    place = ClientOptions(api_endpoint=f"{options.region}-aiplatform.googleapis.com")
    try:
        made = types.JobServiceClient(client_options=place).create_custom_job(request)
    except (GoogleAPICallError, GoogleAuthError) as e:
        raise UserError(f"Vertex AI: {e}") from None
    print(made.name)
    return 0


def _parser() -> Parser:
    parser = Parser(__doc__)
    common_options(parser)
    project = re.compile(r"[a-z][-a-z0-9]{4,28}[a-z0-9]")
    region = re.compile(r"[a-z]+-[a-z]+[0-9]+")
    bucket = re.compile(r"[a-z0-9][-_.a-z0-9]{1,61}[a-z0-9]")
    machine = re.compile(r"[a-z][a-z0-9]*-[a-z0-9\-]+")
    account = re.compile(r"[\w.\-]+@[\w.\-]+")
    add = parser.add_argument
    add("--project", required=True, type=matching(project, "the ID of a project"), help="its ID")
    add("--region", default="us-central1", type=matching(region, "such as us-central1"),
        help="(%(default)s)")  # fmt: skip
    add("--bucket", required=True, type=matching(bucket, "the name of a bucket, without gs://"),
        help="where results go, in the region")  # fmt: skip
    add("--config", type=Path, help="YAML file of flags of rvqlm train")
    add("--image", "--image-uri", required=True, type=image_type, help="of the Dockerfile")
    add("--machine-type", default="n1-standard-16", help="(%(default)s)",
        type=matching(machine, "such as n1-standard-16"))  # fmt: skip
    add("--accelerator-type", help="such as NVIDIA_TESLA_T4; without it there is none")
    add("--accelerator-count", type=number(1), help="of them (1)")
    add("--spot", action="store_true", help="a spot machine")
    add("--disk-size", type=number(100), default=200, help="GB (%(default)s)")
    add("--max-hours", type=number(1), default=168, help="then the job ends (%(default)s)")
    add("--service-account", type=matching(account, "its address"), help="that the job runs as")
    return parser


def _service():
    try:
        from google.cloud import aiplatform_v1
    except ImportError:
        raise UserError(
            "google-cloud-aiplatform is not installed: pip install -e .[vertex]"
        ) from None
    return aiplatform_v1


def _flags(options, flags: list[str]) -> list[str]:
    """The flags of the training, checked; without --config, which is given elsewhere."""
    if value_of(flags, "exp-dir") is None:
        flags = [*flags, "--exp-dir", f"gs://{options.bucket}/{options.name}"]
    elif not REMOTE.fullmatch(value_of(flags, "exp-dir") or ""):
        raise UserError(
            f"--exp-dir {value_of(flags, 'exp-dir')}: the disk goes with the machine; give "
            "gs://BUCKET/PATH, or nothing"
        )
    return with_config(flags, options.config)


def custom_job(types, options, flags: list[str]):
    """The job as the service takes it (`google.cloud.aiplatform_v1.types.CustomJob`)."""
    kinds = types.AcceleratorType
    count = 0
    if options.accelerator_type:
        if options.accelerator_type not in kinds.__members__:
            known = ", ".join(name for name in kinds.__members__ if name.startswith("NVIDIA"))
            raise UserError(f"--accelerator-type {options.accelerator_type}: there are {known}")
        count = options.accelerator_count or 1
    elif options.accelerator_count:
        raise UserError("--accelerator-count means nothing without --accelerator-type")
    command = [NODE_SH, "--processes", str(max(1, count)), "--grace", "60", "--", *flags]
    command, carried = carrying(map(literal, command), options.config)
    env = {key: literal(value) for key, value in options.env} | carried
    if sum(map(len, [*command, *env.values()])) > LIMIT:
        raise UserError(f"--config and flags are more than {LIMIT:,} characters")
    machine = types.MachineSpec(machine_type=options.machine_type)
    if count:
        machine.accelerator_type = kinds[options.accelerator_type]
        machine.accelerator_count = count
    container = types.ContainerSpec(
        image_uri=options.image,
        args=command,
        env=[{"name": key, "value": value} for key, value in env.items()],
    )
    pool = types.WorkerPoolSpec(
        machine_spec=machine,
        replica_count=1,
        disk_spec=types.DiskSpec(boot_disk_type="pd-ssd", boot_disk_size_gb=options.disk_size),
        container_spec=container,
    )
    strategy = types.Scheduling.Strategy
    scheduling = types.Scheduling(
        timeout={"seconds": options.max_hours * 3600},
        restart_job_on_worker_restart=True,
        strategy=strategy.SPOT if options.spot else strategy.STANDARD,
    )
    output = types.GcsDestination(output_uri_prefix=f"gs://{options.bucket}/{options.name}")
    spec = types.CustomJobSpec(
        worker_pool_specs=[pool], scheduling=scheduling, base_output_directory=output
    )
    if options.service_account:
        spec.service_account = options.service_account
    return types.CustomJob(display_name=options.name, job_spec=spec)


if __name__ == "__main__":
    sys.exit(run(main))
