"""Commands killed at any moment: what was there is whole or not there, and the same command again
ends as if nothing had been. (Of trainings: tests/training/test_resume.py; of tokenize:
tests/tokenizing/test_tokenize_resume.py.)"""

import gzip
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from forked import fork, wait
from saved_models import save_model
from token_fixtures import make_tokens

import rvqlm.bin.main
from rvqlm.codecs.registry import load_codec
from rvqlm.models.factory import build_model

KILLS = 3
PREPARE = "split --manifest-dir tokens --valid 0.2 --test 0.2; index --manifest-dir tokens"
AUDIO = "audio manifest --input ../wav --out-dir cuts --jobs 1"
AUGMENT = (
    "audio augment --input cuts/cuts.jsonl.gz --out cuts/more.jsonl.gz --audio-dir faster "
    "--speeds 1.1 --jobs 1"
)
# commands, of which all are run again after a kill, and what was there whole is left alone
CHAINS = {
    "tokens": f"{PREPARE}; text --manifest-dir tokens --type chars; "
    "pair --manifest-dir tokens --source-dir ../other",
    "audio": f"{AUDIO}; audio loudness --input cuts/cuts.jsonl.gz --out cuts/even.jsonl.gz "
    f"--target-lufs -20 --jobs 1; {AUGMENT}",
    "decode": "decode --input ../other --out-dir wav --split train",
    "generate": "generate --exp-dir ../exp --out-dir made --seconds 0.2 --num-samples 2 "
    "--batch-size 1 --seed 1 --overwrite",
}
# folders that appear when they are complete
NEW = {
    "export": "export --manifest-dir ../other --out-dir out --format shar --shard-size 3",
    "import": "import --input ../exported --out-dir out",
    "npq export": "npq export --manifest-dir ../other --out-dir out",
    "export-model": "export-model ../exp --out out",
}


def run(words: str) -> int:
    return rvqlm.bin.main.main(words.split())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    info = load_codec("spectral", num_codebooks=2).info
    make_tokens(folder / "other", [5] * 12, info, speakers=12)
    (folder / "wav").mkdir()
    rng = np.random.default_rng(0)
    for n in range(2):
        soundfile.write(folder / "wav" / f"{n}.wav", rng.uniform(-0.1, 0.1, 8000), 8000)
    config = {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 1}
    save_model(build_model("codec-lm", config, info), folder / "exp" / "best.pt", 1)
    os.chdir(folder)
    assert run(f"{NEW['export'].replace('../', '').replace(' out ', ' exported ')}") == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Files by name, hidden ones too; those with times in them by name alone."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            timed = path.suffix == ".json" and path.parent.name == "made"
            content = b"" if timed else path.read_bytes()
            if path.suffix == ".gz":  # has the time
                content = gzip.decompress(content)
            # times, and checksums of what holds times
            content = re.sub(rb'"mtime_ns": \d+|crc32:[0-9a-f]{8}|[0-9a-f]{64}', b"", content)
            found[str(path.relative_to(folder))] = content
    return found


def begin(place, name: str, tokens: bool) -> Path:
    """An empty folder to work in, with a token directory that is the same in each."""
    folder = place / name
    folder.mkdir()
    if tokens:
        info = load_codec("spectral", num_codebooks=2).info
        os.chdir(folder)
        make_tokens(Path("tokens"), [5] * 12, info, speakers=12, split=None)
        for path in Path("tokens").rglob("*"):
            os.utime(path, (10**9, 10**9))
    return folder


def all_of(chain: str) -> int:
    for words in chain.split("; "):
        if status := run(words):
            return status
    return 0


@pytest.mark.parametrize("name", [*CHAINS, *NEW])
def test_killed_at_any_moment(place, name, monkeypatch, capfd):
    chain = (CHAINS | NEW)[name]
    whole, killed = (begin(place, f"{name}-{way}", name == "tokens") for way in ("whole", "killed"))
    monkeypatch.chdir(whole)
    assert all_of(chain) == 0  # here, so that what it imports is there for the others
    began = time.monotonic()
    again = name in NEW and fork(lambda: all_of(chain.replace(" out", " out2")))
    assert wait(again or fork(lambda: all_of(chain))) == 0
    took = time.monotonic() - began
    expected = {k: v for k, v in contents(whole).items() if not k.startswith("out2")}
    assert len(expected) > 1

    monkeypatch.chdir(killed)
    rng, hits = random.Random(name), 0
    for _ in range(20):
        pid = fork(lambda: all_of(chain))
        time.sleep(rng.random() * took)
        os.kill(pid, signal.SIGKILL)
        if wait(pid) == -signal.SIGKILL:
            hits += 1
            if hits == KILLS or (name in NEW and Path("out").exists()):
                break
        else:  # it was quicker, as the machine may have become
            took *= 0.8
            if name in NEW:
                shutil.rmtree("out", ignore_errors=True)
    if name in NEW:
        assert not Path("out").exists() or contents(killed / "out") == contents(whole / "out")
    if not Path("out").exists():
        assert wait(fork(lambda: all_of(chain))) == 0
    found = contents(killed)
    # all that is hidden goes with the next lock of the same folder, which a last kill may leave
    assert {k: v for k, v in found.items() if not k.startswith(".out")} == expected
    assert "Traceback" not in capfd.readouterr().err and hits


@pytest.mark.parametrize("name", ["audio", "decode", "export", "import", "npq export"])
def test_a_full_disk_is_one_line(place, name, monkeypatch):
    """A limit on the size of files stands for the disk; nothing half-written is left."""
    folder = begin(place, f"{name}-full", name == "tokens")
    monkeypatch.chdir(folder)
    for words in (CHAINS | NEW)[name].split("; "):
        before, (reading, writing) = contents(folder), os.pipe()

        def limited(words=words, writing=writing):
            os.dup2(writing, 2)
            sys.stderr = open(2, "w", 1, closefd=False)  # noqa: SIM115
            resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))  # a lock fits
            return run(words)

        status = wait(fork(limited))
        os.close(writing)
        with open(reading) as file:
            said = file.read()
        assert (status, said.count(": error: ")) in ((2, 1), (0, 0)), said
        after = contents(folder)
        assert all(after.get(k) == v for k, v in before.items() if "splits" not in k)
        assert not [k for k in after if "/." in f"/{k}"]
        assert status == 0 or name not in NEW or not Path("out").exists()
        assert status == 0 or run(words) == 0
