"""Files of anybody: whatever is changed in one, commands give a result or say in a line what is
wrong, and `rvqlm validate` finds every bit that is not what it was.
"""

from __future__ import annotations

import copy
import gzip
import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from condition_fixtures import make_steps
from experiments import CODEC, add_evaluation, add_sample, add_training
from families import make
from saved_models import save_model
from token_fixtures import drop_checksums, make_tokens

from rvqlm.bin.main import main
from rvqlm.checkpoints.exported import save_pretrained
from rvqlm.codec_info import CodecInfo
from rvqlm.data.conditions import ConditionSet, load_info, save_info
from rvqlm.data.index import TokenDataset, build_index, splits_of
from rvqlm.data.pairs import PairConfig, make_pairs
from rvqlm.data.plan import PlanConfig
from rvqlm.data.speakers import Speakers
from rvqlm.data.splits import SplitConfig, split_manifest
from rvqlm.data.stats import inspect
from rvqlm.errors import UserError

TIMES = 4  # changes of each file
FLIPS = 8  # of each file

VALIDATE = "validate --manifest-dir tokens --max-duration 20"
TOKENS = [
    VALIDATE,
    "index --manifest-dir tokens",
    "info tokens --max-cuts 3",
    "split --manifest-dir tokens --valid 2 --test 2",
    "export --manifest-dir tokens --format npy --out-dir out",
]
EXP = ["monitor exp", "compare --exp-dirs exp other", "doctor exp", "info exp"]
SHAR = "export --manifest-dir tokens --format shar --out-dir out"
REPORT = "report --exp-dir exp --manifest-dir tokens --out page.html"
PAGE = "compare --exp-dirs exp other --page side.html"
PARTS = ["parts.json", *(f"part-00001-of-00002/{n}" for n in ("tokens.json", "cuts.jsonl.gz"))]
LISTEN = "listen listening/result.json"
FILES = {
    "tokens/tokens.json": TOKENS,
    "tokens/splits.json": TOKENS[:3],
    "tokens/cuts.jsonl.gz": [*TOKENS[2:], "info tokens/cuts.jsonl.gz"],
    "tokens/cuts_train.jsonl.gz": [
        *TOKENS[:2],
        "export --manifest-dir tokens --format shar --out-dir out",
    ],
    "tokens/text.json": [VALIDATE],
    "tokens/source.json": [VALIDATE],
    "tokens/stats.json": [REPORT],
    **{f"many/{name}": ["combine --out-dir many"] for name in PARTS},
    "npy/manifest.jsonl": ["import --input npy --out-dir out", "info npy"],
    "npy/codec.json": ["import --input npy --out-dir out", "info npy"],
    "exp/run.json": [*EXP, REPORT],
    "exp/metrics.jsonl": [*EXP, REPORT],
    "exp/config.yaml": EXP,
    "exp/eval_test.json": [EXP[1], REPORT],
    "exp/samples/a.json": [EXP[1], REPORT, PAGE],
    "exp/samples/judged.json": [EXP[1], REPORT, PAGE],
    "expected/mine.expected.json": ["monitor exp --expected expected/mine.expected.json"],
    "listening/result.json": [LISTEN],
    "listening/test.key.json": [LISTEN],
    "exp/ranks/rank-0.json": EXP[:1],
    "exp/stages.tsv": [REPORT],
    "exported/config.json": ["info exported", "doctor exported"],
}


STORED = (
    *("tokens.json", "splits.json", "text.json", "source.json", "cuts.jsonl.gz"),
    *("cuts_train.jsonl.gz", "index_train.bin", "text_train.bin", "source_train.bin"),
    *("speakers_train.bin", "codes/shard-00000.rvq"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A small one of every file."""
    folder = tmp_path_factory.mktemp("whole")
    for name in ("tokens", "backing"):
        directory = folder / name
        frames = [9, 14, 5, 7] * 4
        make_tokens(directory, frames, CodecInfo(**CODEC), len(name), speakers=8, split=None)
        split_manifest(SplitConfig(directory, valid=2, test=2, by="recording"))
        for split in splits_of(directory):
            build_index(directory, split)
    for split in splits_of(folder / "tokens"):
        make_steps(folder / "tokens", "text", split)
        Speakers.open(TokenDataset.open(folder / "tokens", split))
    save_info(folder / "tokens", load_info(folder / "tokens", "text", ""))
    make_pairs(PairConfig(folder / "tokens", folder / "backing"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert (
            main(["export", "--manifest-dir", "tokens", "--format", "npy", "--out-dir", "npy"]) == 0
        )
        assert main(VALIDATE.split()) == 0
        for name in "ab":
            soundfile.write(f"{name}.wav", np.linspace(-0.5, 0.5, 800), 16000)
        for part in (0, 1):
            words = f"tokenize --input a.wav b.wav --out-dir many --jobs 1 --part {part}/2"
            assert main(words.split()) == 0
    for name in ("exp", "other"):
        add_training(folder / name)
        save_model(make("delay-custom"), folder / name / "latest.pt")
        add_evaluation(folder / name)
        add_sample(folder / name, "a")
        (folder / name / "stages.tsv").write_text("0\t9\tSet-up\n1\t60\tPrepare\n")
        (folder / name / "ranks").mkdir()
        (folder / name / "ranks/rank-0.json").write_text('{"rank": 0, "where": "data"}')
    save_pretrained(make("delay-custom"), folder / "exported")
    judged = {"summary": {"samples": {"words.wer": {"mean": 0.4, "interval": [0.3, 0.5]}}},
              "figures": {"words.wer": {"better": "lower", "meaning": "words"}}}  # fmt: skip
    (folder / "exp/samples/judged.json").write_text(json.dumps(judged))
    make_listening(folder)
    return folder


def make_listening(folder: Path) -> None:
    """A listening test's key, what somebody answered, and what is expected of a training."""
    record = {"kind": "valid", "step": 20, "loss": 2.0, "nats": [1.5, 2.5], "elapsed": 180.0}
    with open(folder / "exp/metrics.jsonl", "a") as log:
        print(json.dumps(record), file=log)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "expected").mkdir()
        assert main(["monitor", "exp", "--write-expected", "expected/mine.expected.json"]) == 0
        (folder / "listening").mkdir()
        out = "listening/test.html"
        assert main(["listen", "make", "--exp-dirs", "exp", "other", "--out", out]) == 0
    key_path = folder / "listening/test.key.json"
    key = {k: v for k, v in json.loads(key_path.read_text()).items() if k != "checksum"}
    key_path.write_text(json.dumps(key))
    answers = {trial["id"]: {"answer": "left", "seconds": 1.5} for trial in key["trials"]}
    result = {"test": key["test"], "rater": "Ann", "session": "1", "saved": "2026", "trials": 1}
    (folder / "listening/result.json").write_text(json.dumps(result | {"answers": answers}))


@pytest.fixture
def folder(whole, tmp_path, monkeypatch) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def run(words: str, capsys) -> tuple[int, str]:
    """Status and everything said by a command that says what is wrong in a line, if anything is."""
    status = main(words.split())
    said = capsys.readouterr()
    if status and "doctor" not in words:  # its status is what it found
        *_, last = (line for line in said.err.replace("\r", "\n").splitlines() if line.strip())
        assert status == 2 and last.startswith("rvqlm ") and ": error: " in last
        assert len(last) < 2000
    return status, said.out + said.err


DEEP: list = []
for _ in range(90):
    DEEP = [DEEP]
ODD = (
    None, True, -1, 0, 1, 2, 1.5, 10**30, 1 << 62, -(10**9), math.inf, -math.inf, math.nan, 1e300,
    "", "x", "../../x", "/", "\udcff", "\ud800", "é" * 300, "0,1,3,int16", [], {}, [None], [[]],
    {"a": 1}, [1e300], DEEP,
)  # fmt: skip


def changed(value, rng: random.Random):
    """The values with one of them, at any depth, left out, twice, or of another kind."""
    value = copy.deepcopy(value)
    places, open_ = [], [value]
    while open_:
        inside = open_.pop()
        keys = [*inside] if isinstance(inside, dict) else range(len(inside))
        places += [(inside, key) for key in keys]
        open_ += [inside[key] for key in keys if isinstance(inside[key], dict | list)]
    inside, key = rng.choice(places)
    how = rng.randrange(8)
    if how == 0:
        del inside[key]
    elif how == 1 and isinstance(inside, list):
        inside.insert(key, inside[key])
    elif how == 2 and isinstance(inside[key], int | float):
        inside[key] = type(inside[key])(inside[key] * rng.choice([-1, 2, 1000, 10**9]))
    else:
        inside[key] = copy.deepcopy(rng.choice(ODD))
    return value


def read(path: Path) -> list:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if path.suffix == ".yaml":
        return [yaml.safe_load(text)]
    if path.suffix == ".tsv":
        return [line.split("\t") for line in text.decode().splitlines()]
    lines = text.splitlines() if ".jsonl" in path.name else [text]
    return [json.loads(line) for line in lines]


def write(path: Path, values: list) -> None:
    if path.suffix == ".tsv":
        text = "\n".join("\t".join(map(str, line)) if isinstance(line, list) else str(line)
                         for line in values).encode(errors="replace")  # fmt: skip
    else:
        text = b"\n".join(json.dumps(value).encode() for value in values)
    path.write_bytes(gzip.compress(text, 1) if path.suffix == ".gz" else text)


def test_commands_take_them_as_they_are(whole, folder, capsys):
    for words in dict.fromkeys(words for of_file in FILES.values() for words in of_file):
        status, said = run(words, capsys)
        assert status == 0 or "doctor" in words, (words, said)
        fresh(folder, "out", whole)


@pytest.mark.parametrize("name", FILES)
def test_changed_values(name, whole, folder, capsys):
    """Without checksums, which would hide what readers make of the values."""
    rng = random.Random(name)
    values = read(whole / name)
    for value in values:
        if isinstance(value, dict):
            value.pop("checksum", None)
    for number in range(TIMES):
        write(folder / name, changed(values, rng) if number % 4 else values)
        if number % 4 == 0:
            spoil(folder / name, rng)
        for words in FILES[name]:
            try:
                run(words, capsys)
            except Exception as e:
                raise AssertionError(f"{number}: {words}: {(folder / name).read_bytes()}") from e
            fresh(folder, "out", whole)
        fresh(folder, name.split("/")[0], whole)


def spoil(path: Path, rng: random.Random) -> None:
    """Bytes of a file changed, lost or twice."""
    data = bytearray(path.read_bytes())
    at, size = rng.randrange(len(data)), rng.choice([1, 4, 100])
    piece = data[at : at + size]
    data[at : at + size] = rng.choice([b"", piece * 2, rng.randbytes(size), bytes([piece[0] ^ 1])])
    path.write_bytes(data[: rng.choice([len(data), at])] if size == 100 else data)


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def content(path: Path):
    """What a file says, however it is laid out or packed."""
    return path.read_bytes() if path.suffix in (".bin", ".rvq") else read(path)


@pytest.mark.parametrize("old", [False, True], ids=["", "without checksums"])
@pytest.mark.parametrize("name", STORED)
def test_validate_finds_every_flipped_bit(name, old, whole, tmp_path):
    rng, directory = random.Random(name), tmp_path / "tokens"
    shutil.copytree(whole / "tokens", directory)
    shutil.copytree(whole / "backing", tmp_path / "backing")
    if old:
        drop_checksums(directory)
    path = directory / name
    good, said = path.read_bytes(), content(path)
    for _ in range(FLIPS):
        flip(path, rng)
        try:
            found = inspect(directory, PlanConfig(max_duration=20.0))
            seen = found["problems"] or (name in found["without_checksum"])
        except UserError:
            seen = True
        assert seen or content(path) == said, path.read_bytes()  # 1e-5 is 1E-5
        path.write_bytes(good)


@pytest.mark.parametrize("name", ["index_train.bin", "text_train.bin"])
def test_a_reader_finds_every_flipped_bit_of_columns(name, whole, tmp_path):
    """Training opens them, and never runs validate."""
    rng, directory = random.Random(name), tmp_path / "tokens"
    shutil.copytree(whole / "tokens", directory)
    path = directory / name
    good = path.read_bytes()
    for _ in range(20 * FLIPS):
        flip(path, rng)
        with pytest.raises(UserError, match=name):
            ConditionSet.open(TokenDataset.open(directory, "train"), ["text"])
        path.write_bytes(good)


def fresh(folder: Path, name: str, whole: Path) -> None:
    shutil.rmtree(folder / name, ignore_errors=True)
    if (whole / name).exists():
        shutil.copytree(whole / name, folder / name)
