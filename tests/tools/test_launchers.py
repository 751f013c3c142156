"""tools/launch: what each launcher would submit, against files that were looked through; mistakes.

Nothing is submitted. The manifests and the job of Vertex AI pass the published types of their APIs,
which the launchers themselves compare with. The Dockerfile is read, not built.
"""

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "tools" / "launch"
GOLDEN = Path(__file__).parent / "launch"
TRAIN = "--exp-dir s3://bucket/exp --manifest-dir s3://bucket/tokens --max-minutes 600"
TOKENIZE = "--input s3://bucket/audio --out-dir s3://bucket/tokens"
KUBE = "kubernetes.py {} --image registry:5000/rvqlm:1-cuda"
VERTEX = (
    "vertex.py --project my-project --region europe-west4 --bucket my-bucket --config flags.yaml"
    " --image us-docker.pkg.dev/my-project/rvqlm/rvqlm:1-cuda --machine-type n1-standard-16"
    " --accelerator-type NVIDIA_TESLA_V100 --accelerator-count 4 --spot"
)
DRY_RUNS = {
    "kubernetes_train.yaml": KUBE.format("train")
    + " --nodes 2 --gpus 4 --claim data --secret bucket --select spot=true --tolerate spot"
    f" --service-account trainer --env NCCL_DEBUG=WARN --config flags.yaml"
    f" -- {TRAIN} --parallel ddp",
    "kubernetes_tokenize.yaml": KUBE.format("tokenize") + f" --parts 1000 --gpus 1 -- {TOKENIZE}",
    "skypilot_train.yaml": f"skypilot.py train --accelerators H100:8 --nodes 2 -- {TRAIN}",
    "skypilot_tokenize.yaml": "skypilot.py tokenize --accelerators L4:1 --infra gcp --part 17/1000"
    f" -- {TOKENIZE} --device cuda",
    "vertex.json": f"{VERTEX} -- --manifest-dir gs://my-bucket/tokens",
}


@pytest.fixture
def launcher(monkeypatch, tmp_path):
    """Runs a launcher in this process, in an empty folder; returns its exit status."""
    monkeypatch.syspath_prepend(str(LAUNCH))
    monkeypatch.chdir(tmp_path)
    Path("flags.yaml").write_text("base-lr: 0.001\nmax-minutes: 600\n")

    def run(command: str) -> int:
        words = shlex.split(command)
        spec = importlib.util.spec_from_file_location(f"launch_{words[0][:-3]}", LAUNCH / words[0])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", words)
        try:
            return module.run(module.main)
        except SystemExit as end:
            return end.code

    yield run
    sys.modules.pop("launching", None)


def dry(command: str) -> str:
    at = command.index(" -- ")
    return f"{command[:at]} --dry-run{command[at:]}"


@pytest.mark.parametrize("name", DRY_RUNS)
def test_a_dry_run(name, launcher, capsys):
    assert launcher(dry(DRY_RUNS[name])) == 0
    found = capsys.readouterr().out.replace(str(ROOT), "CHECKOUT")
    assert found == (GOLDEN / name).read_text()


SLURM = {
    "slurm_train.txt": ["--nodes", "2", "--partition", "gpu", "--", "--exp-dir", "a b"],
    "slurm_tokenize.txt": [
        *("--parts", "1000", "--parallel", "20", "--gpus", "0", "--time", "4:00:00"),
        *("--", "--input", "/corpus", "--out-dir", "data/tokens"),
    ],
    "node.txt": [
        *("--processes", "8", "--nodes", "2", "--node-rank", "1", "--master", "host0:29400"),
        *("--", "--exp-dir", "a b"),
    ],
}


@pytest.mark.parametrize("name", SLURM)
def test_a_dry_run_of_a_script(name, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    script = LAUNCH / f"{name.split('_')[0].removesuffix('.txt')}.sh"
    done = subprocess.run(
        [script, "--dry-run", *SLURM[name]], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.replace(str(ROOT), "CHECKOUT") == (GOLDEN / name).read_text()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (f"{KUBE.format('train')} --dry-run", "no flags for rvqlm train after --"),
        (f"{KUBE.format('train')} -- {TRAIN} --nope", "Unrecognized options: --nope"),
        (f"{KUBE.format('train')} -- --exp-dir x --manifest-dir y", "no budget"),
        (f"{KUBE.format('tokenize')} --parts 0 -- {TOKENIZE}", "--parts: '0': a number, at least"),
        (f"{KUBE.format('tokenize')} -- {TOKENIZE}", "required: --parts"),
        (f"kubernetes.py train --image rvqlm -- {TRAIN}", "'rvqlm': REGISTRY/NAME:TAG"),
        (f"{KUBE.format('train')} --memory lots -- {TRAIN}", "'lots': a quantity"),
        (f"{KUBE.format('train')} --name Big_One -- {TRAIN}", "'Big_One': up to 63 small letters"),
        (f"{KUBE.format('train')} --env AWS_SECRET_ACCESS_KEY=x -- {TRAIN}", "a secret does not"),
        (f"{KUBE.format('train')} -- {TRAIN} " + "--max-steps 9 " * 60, "a TrainJob takes 128"),
        ("skypilot.py train -- --exp-dir exp/a --manifest-dir d --max-minutes 1",
         "--exp-dir exp/a: the disk of a spot machine goes with it"),
        (f"skypilot.py train --accelerators 8xH100 -- {TRAIN}", "'8xH100': a kind and how many"),
        (f"skypilot.py tokenize --part 3 -- {TOKENIZE}", "'3': I/N"),
        (f"{VERTEX} -- --config other.yaml", "--config comes before --"),
        (f"{VERTEX} -- --manifest-dir d --exp-dir exp/a", "give gs://BUCKET/PATH, or nothing"),
        (f"{VERTEX} --accelerator-type H100 -- --manifest-dir d", "there are NVIDIA_TESLA_K80"),
        (f"{VERTEX} --bucket gs://b -- --manifest-dir d", "'gs://b': the name of a bucket"),
        (f"{VERTEX} --config none.yaml -- --manifest-dir d", "none.yaml"),
        ("vertex.py -- --manifest-dir d", "required: --project"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(command, words, launcher, capsys):
    assert launcher(command) == 2
    err = capsys.readouterr().err
    assert words in err and len(err.splitlines()) == 1


def test_the_api_has_no_such_field(launcher, monkeypatch):
    launcher("kubernetes.py train --help")
    module = sys.modules["launching"]
    import kubernetes

    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}}
    pods = {"spec": {"containers": [{"name": "a", "memory": "1Gi"}]}}
    for spec, words in [
        ({"template": pods}, r"Job: spec.template.spec.containers\[0\].memory: .* no such field"),
        ({"template": {}, "completions": "1000"}, "Job: completions: .*integer"),
        ({"completions": 3}, "Job: template: "),
    ]:
        with pytest.raises(module.UserError, match=words):
            kubernetes.check(job | {"spec": spec})
    sys.modules.pop("kubernetes")


@pytest.mark.parametrize("end", ["exit 2", "kill -KILL $BASHPID", "sleep 60 & echo ready; wait"])
def test_the_status_of_ranks(end):
    """That of the rank that failed first, or of the signal that came; not torchrun's 1."""
    other = "[[ $RANK == 1 ]] && { echo ready; exec sleep 60; }"
    script = f"{other}; trap 'kill $!; exit 143' TERM; {end}"
    ranks = [LAUNCH / "ranks.py", "--standalone", "--nproc-per-node", "2", "--no-python"]
    process = subprocess.Popen(
        [sys.executable, *ranks, "bash", "-c", script],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if "wait" in end:
        for _ in range(2):  # both: torchrun forgets those that it is about to start
            assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == {"e": 2, "k": 137, "s": 143}[end[0]], err


def documented() -> list[str]:
    found = []
    for page in sorted(ROOT.glob("docs/*.md")):
        blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.M | re.S)
        lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
        found += [" ".join(line.split()) for line in lines if "tools/launch/" in line]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("command", documented())
def test_commands_of_the_pages(command, launcher):
    """Each would submit something that passes all checks; flags of scripts are read here."""
    words = shlex.split(command)
    at = words.index("--")
    if words[0] == "python":
        Path("exp").mkdir()
        Path("exp/flags.yaml").write_text("max-minutes: 600\n")
        name = Path(words[1]).name
        assert launcher(shlex.join([name, *words[2:at], "--dry-run", *words[at:]])) == 0
        return
    done = subprocess.run(
        [ROOT / words[0], *words[1:at], "--dry-run", *words[at:]],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    launcher("kubernetes.py --help")  # imports what reads flags
    what = "tokenize" if "--parts" in words[:at] else "train"
    sys.modules["launching"].checked(what, words[at + 1 :])


def dockerfile() -> list[tuple[str, str]]:
    """Instructions with their arguments, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def test_the_dockerfile():
    """What can be seen of it without a builder."""
    steps = dockerfile()
    stages, ignored = {}, (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"  # nothing but what is named
    for what, words in steps:
        if what == "FROM":
            image, _, name = words.split()
            assert image in stages or image == "python:${PYTHON}"
            stages[name] = [*stages.get(image, [])]
        elif what == "COPY":
            *sources, _ = words.split()
            if sources[0].startswith("--from="):
                assert sources[0].removeprefix("--from=") in stages
                continue
            for source in sources:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignored, source
        if what == "ARG" and words.startswith("PYTHON="):
            assert re.fullmatch(r"PYTHON=3\.\d+\.\d+-slim-\w+", words)
        if what == "ARG" and words.startswith("EXTRAS="):
            extras = words.removeprefix("EXTRAS=").split(",")
            setup = (ROOT / "setup.py").read_text()
            assert all(f'"{extra}": [' in setup for extra in extras)
        if stages:
            stages[list(stages)[-1]].append((what, words))
    assert {"cpu", "cuda"} < set(stages)
    for name in ("cpu", "cuda"):
        users = [words for what, words in stages[name] if what == "USER"]
        assert users and users[-1].split(":")[0] not in ("root", "0")
        assert not [1 for what, words in stages[name] if what == "RUN" and "pip" in words]
        assert dict(stages[name])["ENTRYPOINT"] == '["/usr/bin/tini", "--"]'
    for name, found in stages.items():
        for what, words in found:
            if what == "RUN" and "pip install" in words:
                assert "-c tools/constraints.txt" in words
                assert ("ENV", "PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1") in found, name
            if what == "RUN" and "apt-get install" in words:
                assert "--no-install-recommends" in words
                assert "rm -rf /var/lib/apt/lists/*" in words
    assert ("COPY", "tools/launch /opt/rvqlm/tools/launch") in stages["cuda"]
    text = (LAUNCH / "launching.py").read_text()
    assert 'NODE_SH = "/opt/rvqlm/tools/launch/node.sh"' in text


def test_the_shell_steps_of_the_dockerfile_parse():
    for what, words in dockerfile():
        if what == "RUN":
            done = subprocess.run(["bash", "-n", "-c", words], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


def test_yaml_of_skypilot_runs(launcher, capsys, tmp_path):
    """The shell of its run step hands over the flags as they were written."""
    flags = "--exp-dir 's3://b/a b' --manifest-dir s3://b/t --max-minutes 1"
    assert launcher(f"skypilot.py train --nodes 2 --accelerators L4 --dry-run -- {flags}") == 0
    script = yaml.safe_load(capsys.readouterr().out)["run"]
    script = script.replace("source .venv/bin/activate", "").replace("exec ", "printf '%s\\n' ")
    env = os.environ | {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2\n"}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
    words = done.stdout.splitlines()
    assert words[words.index("--master") + 1] == "10.0.0.1:29400"
    assert words[words.index("--node-rank") + 1] == "1" and "s3://b/a b" in words
