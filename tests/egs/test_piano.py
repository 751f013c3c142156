"""egs/atepp and egs/maestro on their stand-ins, from nothing to the page."""

import csv
import gzip
import importlib
import json
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import soundfile
import torch
import warm
from midi_files import reference_notes
from report_page import lacking

from rvqlm.audio.parts import file_recording
from rvqlm.data.conditions import ConditionSet
from rvqlm.data.index import TokenDataset
from rvqlm.data.plan import Items
from rvqlm.errors import UserError

EGS = Path(__file__).resolve().parents[2] / "egs"


@pytest.fixture(scope="module")
def modules():
    """The scripts of local/, imported."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("shared", "maestro", "atepp"):
            patch.syspath_prepend(str(EGS / name / "local"))
        names = ("atepp", "maestro", "performances", "stand_in_piano")
        others = {*sys.modules}  # of other test files, which go on needing theirs
        yield {name: importlib.import_module(name) for name in names}
        for name in {*names, "download"} - others:
            sys.modules.pop(name, None)


def recipe(script: str, *args: str, cwd: Path) -> str:
    done = subprocess.run(
        [str(EGS / script), *args],
        cwd=cwd, env=warm.environment(), capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def cuts(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def splits(tokens: Path) -> dict[str, set[str]]:
    """Pieces by split."""
    return {
        split: {c["custom"]["group"] for c in cuts(tokens / f"cuts_{split}.jsonl.gz")}
        for split in ("train", "valid", "test")
    }


def page_of(exp: Path) -> str:
    page = (exp / "report.html").read_text(encoding="utf-8")
    assert not lacking(page) and page.count("data:audio/flac") >= 2
    return page


def stand_in(name: str, folder: Path, *flags: str) -> None:
    """A corpus smaller than that of --quick."""
    script = str(EGS / name / "local/stand_in.py")
    subprocess.run(
        ["python", script, "--out-dir", str(folder), *flags], env=warm.environment(), check=True
    )


def test_atepp_is_continued(tmp_path):
    data, exp = tmp_path / "the data", tmp_path / "exp"
    stand_in("atepp", data / "ATEPP", "--compositions", "3", "--seconds", "9")
    words = ("--data-dir", str(data), "--exp-dir", str(exp), "--num-samples", "1", "--seconds", "1")
    out = recipe("atepp/run.sh", "--quick", "--train-minutes", "0.02", "--stage", "1", *words,
                 cwd=tmp_path)  # fmt: skip
    assert "is there already" in out and "8 performances of 3 compositions" in out
    page_of(exp)
    assert "not run: whisper" in out and (exp / "listening.html").exists()
    tokens = data / "tokenized"
    found = cuts(tokens / "cuts.jsonl.gz")
    assert all(5 <= c["duration"] <= 15.1 for c in found) and len(found) == 8
    pieces = splits(tokens)
    assert sum(map(len, pieces.values())) == len(set.union(*pieces.values())) == 3
    assert all(pieces.values())
    # the guide's command, with its flags as they are typed there, but for the sizes
    typed = shlex.split(
        "--model-name audio-lm --decoder-dim 32 --nhead 16 --num-decoder-layers 1 "
        "--num-quantizers 4 --base-lr 0.05 --num-epochs 1 --max-duration 150 "
        "--filter-min-duration 5 --filter-max-duration 15 --train-stage 0"
    )
    done = subprocess.run(
        ["python", str(EGS / "atepp/bin/trainer_audiolm.py"), *typed,
         "--exp-dir", "lm", "--manifest-dir", str(tokens)],
        cwd=tmp_path, env=warm.environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "scaled_adam, learning rate 0.05 after a warm-up over 200 steps, then eden" in (
        done.stdout + done.stderr
    )
    assert (tmp_path / "lm/best.pt").exists()


def test_maestro_is_played_from_its_notes(tmp_path):
    data, exp = tmp_path / "data", tmp_path / "exp"
    stand_in("maestro", data / "maestro-v3.0.0", "--seconds", "18")
    words = ("--data-dir", str(data), "--exp-dir", str(exp), "--num-samples", "1", "--seconds", "1")
    recipe("maestro/run.sh", "--quick", "--judge", "0", "--task", "midi", "--train-minutes", "0.02",
           "--stage", "1", *words, cwd=tmp_path)  # fmt: skip
    page_of(exp)
    tokens = data / "tokenized"
    table = data / "maestro-v3.0.0/maestro-v3.0.0.csv"
    with open(table, encoding="utf-8", newline="") as file:
        rows = {r["audio_filename"][:-4]: r for r in csv.DictReader(file)}
    for split, named in (("train", "train"), ("valid", "validation"), ("test", "test")):
        for cut in cuts(tokens / f"cuts_{split}.jsonl.gz"):
            assert rows[cut["id"]]["split"] == named
    pieces = splits(tokens)
    assert len(pieces["train"]) == 4 and not pieces["train"] & (pieces["valid"] | pieces["test"])
    # what a window of 4 s is given is what a plain reader of the file finds sounding in it
    dataset = TokenDataset.open(tokens, "train")
    conditions = ConditionSet.open(dataset, ["midi"])
    for row, cut in enumerate(dataset.cuts()):
        notes = reference_notes(data / "maestro-v3.0.0" / rows[cut["id"]]["midi_filename"])
        for start in (0, 333, 600):
            begin, end = start / 50, (start + 200) / 50
            wanted = []
            for n, (time, held, pitch, velocity, pedal) in enumerate(notes):
                struck = min([m[0] for m in notes[n + 1 :] if m[2] == pitch], default=1e9)
                silent = min(time + held + pedal, max(struck, time + held))
                if time < end and (time >= begin or silent > begin + 1e-4):
                    wanted.append((pitch, velocity // 2, time < begin))
            item = Items(*(torch.tensor([x]).numpy() for x in (row, start, 200)))
            given = conditions.read(item)["midi"]
            got = given.values[0, : int(given.lengths[0])]
            assert [(p, v, place == 1024) for p, v, _, _, place, _ in got.tolist()] == wanted
            assert wanted and (not start or any(before for _, _, before in wanted))


def test_a_dry_run_downloads_nothing(tmp_path):
    out = recipe("maestro/run.sh", "--dry-run", "--data-dir", "d", cwd=tmp_path)
    assert "local/maestro.py --download-dir" in out and "rvqlm midi" in out and "rvqlm train" in out
    assert not list(tmp_path.iterdir())
    done = subprocess.run(
        [str(EGS / "atepp/prepare.sh")], capture_output=True, text=True, timeout=60,
        env=warm.environment(),
    )  # fmt: skip
    assert done.returncode == 2 and "handed out after an agreement" in done.stderr


@pytest.fixture
def small(modules, tmp_path):
    """A corpus in ATEPP's layout, of one composition, with one recording."""
    corpus = tmp_path / "ATEPP-1.2"
    midi, audio = corpus / "A/Sonata/I/00001.mid", tmp_path / "recordings/x/00001.flac"
    modules["stand_in_piano"].play(midi, audio, 0, 0, 2.0, 16000)
    shutil.copy(midi, midi.with_name("00002.mid"))
    (corpus / "ATEPP-metadata-1.1.csv").write_text("midi_path\nold.mid\n")
    lines = ["midi_path,quality,composer"]
    lines += [f"A/Sonata/I/{n:05d}.mid,{quality},A" for n, quality in enumerate(
        ("", "", "", "corrupted", ""))]  # fmt: skip
    (corpus / "ATEPP-metadata-1.2.csv").write_text("\n".join(lines) + "\n")
    return corpus, tmp_path / "recordings", tmp_path / "out"


def test_what_atepp_lacks_is_said(modules, small, capsys):
    corpus, recordings, out = small
    made = modules["atepp"].prepare_atepp(corpus, recordings, out)
    (recording,) = made["all"]["recordings"]
    (about,) = made["all"]["supervisions"]
    assert recording.id == about.recording_id == "A/Sonata/I/00001"
    assert about.custom["group"] == "A/Sonata" and about.custom["composer"] == "A"
    said = capsys.readouterr().err
    assert '1 performances left out: "corrupted"' in said
    assert "1 performances without a recording" in said
    assert "2 performances without their MIDI file" in said
    (recordings / "00001.wav").write_bytes((recordings / "x/00001.flac").read_bytes())
    with pytest.raises(UserError, match="two recordings of one number"):
        modules["atepp"].prepare_atepp(corpus, recordings, out)
    shutil.rmtree(recordings)
    with pytest.raises(UserError, match="no recording is named as a performance"):
        modules["atepp"].prepare_atepp(corpus, recordings, out)
    (corpus / "ATEPP-metadata-1.2.csv").write_text("midi_path\n../../a/b/c.mid\n")
    with pytest.raises(UserError, match=r"midi_path '\.\./\.\./a/b/c.mid' is not COMPOSER"):
        modules["atepp"].prepare_atepp(corpus, recordings, out)


def test_a_piece_in_two_splits_of_maestro_is_held_out(modules, tmp_path, capsys):
    corpus = tmp_path / "maestro-v3.0.0"
    lines = ["canonical_composer,canonical_title,split,year,midi_filename,audio_filename,duration"]
    for n, (title, split) in enumerate(
        (("Nocturne", "train"), ("nocturne", "test"), ("Etude", "train"), ("Prelude", "validation"))
    ):
        lines.append(f"A,{title},{split},2004,2004/{n}.midi,2004/{n}.wav,2.0")
        files = corpus / f"2004/{n}.midi", corpus / f"2004/{n}.wav"
        modules["stand_in_piano"].play(*files, n, 0, 2.0, 16000)
    (corpus / "2004/3.wav").write_bytes(b"no audio")
    (corpus / "maestro-v3.0.0.csv").write_text("\n".join(lines) + "\n")
    made = modules["maestro"].prepare_maestro(corpus, tmp_path / "out")
    assert {split: [r.id for r in m["recordings"]] for split, m in made.items()} == {
        "test": ["2004/1"], "train": ["2004/2"],
    }  # fmt: skip
    said = capsys.readouterr().err
    assert "1 performances left out: their pieces are in another split" in said
    assert (tmp_path / "out/skipped.jsonl").read_text().count("2004/3") == 2
    (corpus / "maestro-v3.0.0.csv").write_text(lines[0] + "\nA,B,dev,2004,a.midi,a.wav,1\n")
    with pytest.raises(UserError, match="csv:2: no split 'dev'"):
        modules["maestro"].prepare_maestro(corpus, tmp_path / "out")


def test_the_recording_is_of_the_notes(modules, tmp_path):
    """Each note of the file is heard where it lies: level rises at onsets."""
    midi, audio = tmp_path / "a.mid", tmp_path / "a.wav"
    seconds = modules["stand_in_piano"].play(midi, audio, 3, 1, 6.0, 16000)
    sound, rate = soundfile.read(audio)
    notes = reference_notes(midi)
    assert len(sound) / rate == pytest.approx(seconds) and sound.shape[1] == 2
    first = round(notes[0][0] * rate)
    assert abs(sound[: max(1, first - 8)]).max() < 1e-3 < abs(sound[first : first + 800]).max()
    end = max(n[0] + n[1] + n[4] for n in notes)
    assert seconds < end + 0.4 and any(n[4] > 0.2 for n in notes)


def test_parts_are_all_of_a_performance(modules):
    parts = modules["performances"]._parts
    for samples in (500, 1499, 1500, 2500, 9001):
        made = parts(file_recording("a", "a.wav", 100, 2, samples), 10.0)
        assert made[0].start == 0 and made[-1].end == samples / 100
        assert all(a.end == b.start for a, b in pairwise(made))
        assert all(5 <= part.duration < 15 for part in made)
    (whole,) = parts(file_recording("a", "a.wav", 100, 2, 9001), 0)
    assert whole.id == "a" and whole.duration == 90.01
