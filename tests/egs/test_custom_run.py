"""egs/custom/run.sh from a folder of 50 mixed files, two of them broken, to the report."""

import gzip
import json
import subprocess
from pathlib import Path

import pytest
import warm
from mixed_folder import BROKEN, FILES, make

EGS = Path(__file__).resolve().parents[2] / "egs"


def recipe(script: str, *args: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(EGS / "custom" / script), *args],
        cwd=cwd, env=warm.environment(), capture_output=True, text=True, timeout=500,
    )  # fmt: skip


def cuts(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A folder in which the recipe ran, with a copy of each recording, and what it printed."""
    folder = tmp_path_factory.mktemp("custom")
    make(folder / "my audio")
    prepare = (
        "--device cpu --loudness -23 --activity --rms-threshold 0.005 --min-window-seconds 1 "
        "--rms-frame-seconds 1 --rms-stride-seconds 0.1 --loudness-after -20 --speeds 1.1 "
        "--speaker-from folder --valid 4 --test 4"
    )
    done = recipe(
        "run.sh", "--audio", "my audio", "--data-dir", "data", "--exp-dir", "exp",
        "--prepare", prepare, "--config", str(EGS / "mini/conf/quick.yaml"),
        "--train-minutes", "0.1", "--window-frames", "100", "--prompt-seconds", "1",
        "--seconds", "1", "--num-samples", "2", "--judge", "0", "--stage", "1", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder, done.stdout + done.stderr


def test_every_good_file_is_there_and_the_broken_ones_are_listed(finished):
    folder, output = finished
    manifests = folder / "data/manifests"
    assert len(cuts(manifests / "cuts.jsonl.gz")) == FILES - BROKEN
    skipped = (manifests / "skipped.jsonl").read_text(encoding="utf-8")
    assert skipped.count("\n") == BROKEN
    assert "not audio.mp3" in skipped and "empty.wav" in skipped
    tokens = cuts(folder / "data/tokens/cuts.jsonl.gz")
    originals = {c["features"]["recording_id"] for c in tokens if "speed" not in c["id"]}
    assert len(originals) == FILES - BROKEN  # each has something to be heard in it
    copies = [c for c in tokens if "augmented_from" in c["custom"]]
    assert len(copies) == len(tokens) / 2
    assert f"{folder}/exp/report.html" in output


def test_recordings_and_their_copies_are_in_one_split(finished):
    folder, _ = finished
    seen: dict[str, str] = {}
    for split in ("train", "valid", "test"):
        for cut in cuts(folder / f"data/tokens/cuts_{split}.jsonl.gz"):
            assert seen.setdefault(cut["custom"]["group"], split) == split
            assert split == "train" or "augmented_from" not in cut["custom"]
    assert set(seen.values()) == {"train", "valid", "test"}


def test_transcripts_and_speakers_reach_the_tokens(finished):
    folder, _ = finished
    found = [s for c in cuts(folder / "data/tokens/cuts.jsonl.gz") for s in c["supervisions"]]
    voices = {f"voice {i}" for i in range(6)}  # a faster copy has a voice of its own
    assert {s["speaker"] for s in found} == voices | {f"{voice}-speed1.1" for voice in voices}
    assert any(s["text"].endswith(".") for s in found if s.get("text"))


def test_the_page_is_complete(finished):
    folder, _ = finished
    page = (folder / "exp/report.html").read_text(encoding="utf-8")
    assert "Not on this page yet" not in page
    assert page.count("data:audio/flac") >= 6


@pytest.mark.parametrize(
    "config, minutes, limit",
    [
        ("conf/rvq_fast.yaml", (), ""),  # 250 epochs, as it says
        ("conf/rvq_fast.yaml", ("--train-minutes", "5"), "--max-minutes 5 "),
        ("conf/small.yaml", (), "--max-minutes 10 "),
    ],
)
def test_how_long_is_trained(config, minutes, limit, tmp_path):
    options = ["--audio", "music", "--config", EGS / "custom" / config, "--dry-run", *minutes]
    done = subprocess.run(
        [EGS / "custom/run.sh", *options, "--stage", "2", "--stop-stage", "2"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    (line,) = [line for line in done.stdout.splitlines() if "rvqlm train" in line]
    assert limit in line and ("--max-minutes" in line) == bool(limit)


@pytest.mark.parametrize("script", ["run.sh", "prepare.sh"])
def test_mistakes_are_one_line(script, tmp_path):
    for args, message in [
        ((), "--audio is missing"),
        (("--audio", "x", "--no-such"), "unknown option --no-such"),
    ]:
        done = recipe(script, *args, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr
        assert done.stderr.count("\n") == 1
    done = recipe("prepare.sh", "--audio", "nowhere", "--data-dir", "data", cwd=tmp_path)
    assert done.returncode == 2 and "nowhere" in done.stderr and "Traceback" not in done.stderr
