#!/usr/bin/env python3
"""What commit 99ec0c2 writes, for ``test_old_files.py``: small, and made by its own commands.

    python tests/compatibility/make_fixtures.py

Checks the commit out into a temporary folder and runs it there with this environment's packages:
tokens with text, notes, paired streams and speakers; a training with text and voice prompts and
what it logs; one in shards on two ranks; an exported model; what `rvqlm evaluate` and
`rvqlm generate` leave. ``fixtures/99ec0c2.tar.xz`` has the files, ``fixtures/expected.json`` what
that commit computes from them. All paths in the files are relative to the folder they lie in.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

COMMIT = "99ec0c2"
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FIXTURES = HERE / "fixtures"

STEPS, LONGER = 6, 8  # of the training, and where its continuation ends
SMALL = [
    *("--nhead", "2", "--num-decoder-layers", "1", "--dim-feedforward", "16"),
    *("--max-duration", "3", "--num-threads", "1", "--device", "cpu", "--precision", "fp32"),
    *("--warmup-steps", "2", "--ema-decay", "0.9", "--log-every-steps", "2"),
    *("--valid-every-steps", "3", "--save-every-steps", "3"),
]
TRAIN = [
    *("trainer", "--exp-dir", "exp", "--manifest-dir", "tokens", "--decoder-dim", "16"),
    *("--conditions", "text", "prompt", "--condition-prompt-seconds", "0.4", *SMALL),
]
TRAIN_WITH_SAMPLES = [
    *(*TRAIN, "--max-steps", f"{STEPS}", "--sample-every-steps", f"{STEPS}"),
    *("--sample-count", "1", "--sample-seconds", "0.4", "--sample-prompt-seconds", "0.1"),
]
TRAIN_SHARDED = [
    *("--exp-dir", "sharded", "--manifest-dir", "tokens", "--decoder-dim", "8"),
    *("--conditions", "midi", "source", "--parallel", "fsdp", "--max-steps", f"{STEPS}", *SMALL),
]
TOKENIZE = ["--codec", "codec.safetensors", "--jobs", "1"]
COMMANDS = [
    ["tokenize", "--input", "audio.jsonl", "--out-dir", "tokens", *TOKENIZE],
    ["tokenize", "--input", "accompaniment.jsonl", "--out-dir", "accompaniment", *TOKENIZE],
    *(
        ["split", "--manifest-dir", name, "--by", "recording", "--valid", "3", "--test", "3"]
        for name in ("tokens", "accompaniment")
    ),
    ["index", "--manifest-dir", "tokens"],
    ["index", "--manifest-dir", "accompaniment"],
    ["text", "--manifest-dir", "tokens", "--type", "chars", "--unknown", "drop"],
    ["midi", "--manifest-dir", "tokens", "--midi-dir", "midi", "--positions", "64"],
    ["pair", "--manifest-dir", "tokens", "--source-dir", "accompaniment"],
    TRAIN_WITH_SAMPLES,
    ["evaluate", "--exp-dir", "exp", "--manifest-dir", "tokens", "--num-threads", "1"],
    ["generate", "--exp-dir", "exp", "--text", "a dog", "--voice", "audio/1-3.wav",
     "--seconds", "0.2", "--num-threads", "1"],
    ["export-model", "exp", "--out", "exported"],
]  # fmt: skip
LEFT_OUT = ("exp/tensorboard", "sharded/tensorboard")  # its files are named after the machine


# ------------------------------------------------- with the old code, in the folder of its files


def make_inputs() -> None:
    """A codec of random weights, twelve recordings of two speakers, as many of an accompaniment,
    notes of the recordings."""
    import numpy as np
    import soundfile
    import torch

    from rvqlm.codecs.spectral import save_weights
    from rvqlm.codecs.spectral_model import SpectralConfig, SpectralNet

    sys.path.append(str(HERE.parent / "helpers"))
    from midi_files import performance, write_midi

    torch.manual_seed(0)
    config = SpectralConfig(
        sampling_rate=4000, n_fft=160, spectrum_hop=40, width=8, encoder_layers=1, decoder_layers=1,
        latent_dim=4, num_codebooks=2, codebook_size=16,
    )  # fmt: skip
    save_weights(SpectralNet(config), "codec.safetensors")
    rng = np.random.default_rng(0)
    texts = ["a big dog", "the cat", "how do you do", "good morning", "no", "yes, it is"]
    for name in ("audio", "accompaniment"):
        Path(name).mkdir()
        with open(f"{name}.jsonl", "w") as manifest:
            for n in range(12):
                samples = 1600 + 160 * n
                tone = np.sin(np.arange(samples) * (n + 1) / 20) * rng.uniform(0, 1, samples)
                soundfile.write(f"{name}/{n % 2}-{n}.wav", 0.3 * tone, 4000)
                manifest.write(json.dumps(_cut(name, n, samples, texts[n % 6])) + "\n")
    for n in range(12):
        write_midi(Path(f"midi/{n % 2}-{n}.mid"), *performance(n, 0.4, 5, pedals=1))


def _cut(folder: str, n: int, samples: int, text: str) -> dict:
    name, duration = f"{n % 2}-{n}", samples / 4000
    whole = {"start": 0.0, "duration": duration, "channel": 0}
    source = {"type": "file", "channels": [0], "source": f"{folder}/{name}.wav"}
    return {
        "id": name,
        **whole,
        "supervisions": [
            {"id": name, "recording_id": name, **whole, "text": text, "speaker": f"speaker-{n % 2}"}
        ],
        "recording": {
            "id": name,
            "sources": [source],
            "sampling_rate": 4000,
            "num_samples": samples,
            "duration": duration,
        },
        "type": "MonoCut",
    }


def compute_expected() -> None:
    """expected.json: numbers of every model, and how the training continues."""
    import torch

    import rvqlm

    sys.path.append(str(HERE))
    from measure import digest, measure

    found = {name: measure(rvqlm.from_pretrained(name)) for name in ("exp", "exported", "sharded")}
    state = torch.load("exp/latest.pt", weights_only=True)
    found["latest"] = {part: digest(state[part]) for part in ("model", "ema")}
    found["evaluation"] = json.loads(Path("exp/eval_test.json").read_text())["nats"]
    rows = map(json.loads, Path("continued/metrics.jsonl").read_text().splitlines())
    found["continued"] = [row for row in rows if row["step"] > STEPS]
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in found.items())
    Path("expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


# -------------------------------------------------------------------------------- with today's


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        code, files = Path(temporary) / "code", Path(temporary) / "files"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(code), COMMIT], check=True)
        try:
            files.mkdir()
            make_files(code, files)
            scrub(files, temporary)
            pack(files)
        finally:
            subprocess.run([*git, "remove", "--force", str(code)], check=True)


def make_files(code: Path, files: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}

    def python(*words: str) -> None:
        subprocess.run([sys.executable, *words], cwd=files, env=environment, check=True)

    python(__file__, "make_inputs")
    for command in COMMANDS:
        python("-m", "rvqlm.bin.main", *command)
    trainer = [str(code / "rvqlm/bin/trainer.py"), *TRAIN_SHARDED]
    python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *trainer)
    shutil.copytree(files / "exp", files / "continued")
    more = ["--exp-dir", "continued", "--max-steps", f"{LONGER}"]
    python("-m", "rvqlm.bin.main", *TRAIN_WITH_SAMPLES, *more)
    python(__file__, "compute_expected")
    for name in (*LEFT_OUT, "continued"):
        shutil.rmtree(files / name)


def scrub(files: Path, temporary: str) -> None:
    """Nothing of the machine that made them."""
    for path in files.glob("*/run.json"):
        record = json.loads(path.read_text())
        record["machine"] = {"cpu": "a CPU", "cores": 2, "gpus": [], "torch": "2"}
        text = json.dumps(record, indent=1)
        for folder in ("code", "files"):
            text = text.replace(f"{temporary}/{folder}/", "")
        path.write_text(text + "\n")
    host = f'"{os.uname().nodename}"'
    for path in files.glob("*/ranks/*.json"):
        path.write_text(path.read_text().replace(host, '"host"'))
    for path in files.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for word in (temporary, str(ROOT), f"{Path.home()}/", host):
                if (at := content.find(word.encode())) >= 0:
                    raise SystemExit(f"{path.relative_to(files)} has {content[at : at + 200]}")


def pack(files: Path) -> None:
    """Names in order, without owner and time: equal files make an equal archive."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    FIXTURES.mkdir(exist_ok=True)
    shutil.move(files / "expected.json", FIXTURES / "expected.json")
    packed = FIXTURES / f"{COMMIT}.tar.xz"
    with lzma.open(packed, "wb", preset=9 | lzma.PRESET_EXTREME) as stream:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for path in sorted(files.iterdir()):
                archive.add(path, path.name, filter=plain)
    print(f"{packed}: {packed.stat().st_size:,} bytes")


if __name__ == "__main__":
    if sys.argv[1:] in (["make_inputs"], ["compute_expected"]):
        globals()[sys.argv[1]]()
    else:
        main()
