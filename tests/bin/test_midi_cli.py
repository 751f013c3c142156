"""rvqlm midi: which notes every cut gets, and what is refused."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import soundfile
from condition_fixtures import edit_cuts
from lhotse import CutSet, Recording
from midi_files import performance, write_midi
from token_fixtures import INFO, make_tokens

from rvqlm.bin.main import main as main_command
from rvqlm.bin.midi import main
from rvqlm.data.conditions import ConditionSet, load_info
from rvqlm.data.index import TokenDataset, build_index
from rvqlm.data.plan import Items
from rvqlm.data.ragged import Ragged, write_ragged
from rvqlm.errors import UserError
from rvqlm.frontends.midi import MidiFrontEnd
from rvqlm.frontends.midi_file import read_midi

FRAMES = [500, 400, 300, 200]  # 50 a second: 10, 8, 6 and 4 s


@pytest.fixture
def data(tmp_path):
    """Four cuts in a directory, and a folder of MIDI files of ten seconds for the first three."""
    make_tokens(tmp_path / "tokens", FRAMES)
    for n in range(3):
        write_midi(tmp_path / f"midi/cut-{n:04d}.mid", *performance(n, 10, 50))
    return tmp_path / "tokens", tmp_path / "midi"


def midi(tokens, *words):
    return main(["--manifest-dir", str(tokens), *map(str, words)])


def notes_of(path, start=0.0, end=np.inf):
    return MidiFrontEnd().tokens(read_midi(path).notes.between(start, end)).tolist()


def rows(tokens, split="train"):
    ds = TokenDataset.open(tokens, split)
    column = Ragged.open(tokens / f"midi_{split}.bin", ds.fingerprint)
    return [column.read(n).tolist() for n in range(len(ds))]


def test_notes_of_files_named_as_ids(data, capsys):
    tokens, folder = data
    assert midi(tokens, "--midi-dir", folder) == 0
    out = capsys.readouterr().out
    got = rows(tokens)
    expected = [
        notes_of(folder / f"cut-{n:04d}.mid", 0, frames / 50) for n, frames in enumerate(FRAMES[:3])
    ]
    assert got == [*expected, []] and len(got[0]) > len(got[2]) > 0
    count = sum(map(len, got))
    assert f"4 cuts  {count:>11,} notes; 1 without a MIDI file\n" in out
    info = load_info(tokens, "midi", "")
    assert info.rate == pytest.approx(1200 / count) and f"{info.rate:.2f} frames a note" in out
    assert "pitch 128, velocity 64, duration 128, onset 128, position 1025, pedal 128" in out
    dataset = TokenDataset.open(tokens, "train")
    conditions = ConditionSet.open(dataset, ["midi"])
    values, lengths, _ = conditions.read(Items.whole(np.array([0, 3]), dataset.frames))["midi"]
    assert values[0].tolist() == expected[0] and lengths.tolist() == [len(expected[0]), 0]
    again = MidiFrontEnd.from_info(conditions.infos["midi"])
    assert again.encode(folder / "cut-0000.mid").tolist() == expected[0]


def test_parts_of_recordings_get_their_part(data, capsys):
    """Segments: token cuts begin at 0, where they were cut from is in the audio manifest."""
    tokens, folder = data

    def edit(n, cut):
        cut["id"] = f"piece/part-{n}"
        cut["features"]["recording_id"] = "piece/whole"

    edit_cuts(tokens, edit)
    starts = [0, 10, 18, 50]
    with gzip.open(tokens / "audio_cuts.jsonl.gz", "wt") as file:
        for n, start in enumerate(starts):
            file.write(json.dumps({"id": f"piece/part-{n}", "start": start}) + "\n")
    write_midi(folder / "piece/whole.MIDI", *performance(7, 30, 200))
    assert midi(tokens, "--midi-dir", folder) == 0
    got = rows(tokens)
    whole = folder / "piece/whole.MIDI"
    assert got == [notes_of(whole, s, s + f / 50) for s, f in zip(starts, FRAMES)]
    assert got[3] == [] and all(got[:3])
    assert "1 without a note in their part of it" in capsys.readouterr().out
    # a file of the cut's own begins with the cut
    write_midi(folder / "piece/part-1.mid", *performance(8, 8, 40))
    assert midi(tokens, "--midi-dir", folder) == 0
    assert rows(tokens)[1] == notes_of(folder / "piece/part-1.mid", 0, 8) != got[1]
    assert rows(tokens)[2] == got[2]


def test_windows_of_token_cuts(data):
    tokens, folder = data
    hop = INFO.hop / INFO.sampling_rate

    def edit(n, cut):
        if n == 0:
            cut.update(id="cut-0000-window", start=100 * hop, duration=200 * hop)
            cut["custom"]["recording_start"] = 0.0

    edit_cuts(tokens, edit)
    assert midi(tokens, "--midi-dir", folder) == 0
    assert rows(tokens)[0] == notes_of(folder / "cut-0000.mid", 2, 6)


def test_parts_of_which_it_is_not_known_where_they_begin(data, capsys):
    """The first seconds of the recording would be other notes than theirs."""
    tokens, folder = data
    write_midi(folder / "piece/whole.mid", *performance(7, 30, 200))

    def edit(n, cut):
        cut["features"]["recording_id"] = "piece/whole" if n < 3 else cut["id"]
        cut["custom"] = {"recording_start": 18.0} if n == 2 else {}

    edit_cuts(tokens, edit)
    (folder / "cut-0001.mid").rename(folder / "cut-0003.mid")
    for name in ("cut-0000.mid", "cut-0002.mid"):
        (folder / name).unlink()
    assert midi(tokens, "--midi-dir", folder) == 2
    said = capsys.readouterr().err
    assert "cut 'cut-0000' of train: where it begins in its recording 'piece/whole' is" in said
    assert "audio_cuts.jsonl.gz is missing" in said and "--skip-bad" in said
    assert midi(tokens, "--midi-dir", folder, "--skip-bad") == 0
    assert "2 passed over, the first: cut 'cut-0000' of" in capsys.readouterr().out
    whole = folder / "piece/whole.mid"
    own = [notes_of(whole, 18, 24), notes_of(folder / "cut-0003.mid", 0, 4)]
    assert rows(tokens) == [[], [], *own] and all(own)
    # the list is lost of what silence was trimmed from, perhaps
    sidecar = json.loads((tokens / "tokens.json").read_text())
    sidecar.pop("checksum")
    sidecar["audio_manifest"] = "audio_cuts.jsonl.gz"
    (tokens / "tokens.json").write_text(json.dumps(sidecar))
    assert midi(tokens, "--midi-dir", folder, "--skip-bad") == 0
    assert "3 passed over" in capsys.readouterr().out
    assert rows(tokens) == [[], [], own[0], []]
    # a window is not listed, but all that was made of its recording begins at one place
    with gzip.open(tokens / "audio_cuts.jsonl.gz", "wt") as file:
        for id, start, name in (("x", 5.0, "piece/whole"), ("cut-0003", 0.0, "cut-0003")):
            line = {"id": id, "start": start, "recording": {"id": name}}
            file.write(json.dumps(line) + "\n")
    assert midi(tokens, "--midi-dir", folder) == 0
    assert rows(tokens) == [notes_of(whole, 5, 15), notes_of(whole, 5, 13), *own]


def test_tokens_of_parts_know_where_they_begin(tmp_path, capsys):
    """From audio over tokens, windows of them and another directory, without the audio's list."""
    write_midi(tmp_path / "midi/a.mid", *performance(2, 6, 90))
    noise = np.random.default_rng(0).standard_normal(16000 * 6) / 10
    soundfile.write(tmp_path / "a.wav", noise, 16000)
    whole = CutSet.from_cuts([Recording.from_file(tmp_path / "a.wav").to_cut()])
    cuts = whole.cut_into_windows(2.0).to_eager()
    cuts.to_file(tmp_path / "cuts.jsonl")
    words = ["--input", str(tmp_path / "cuts.jsonl"), "--out-dir", str(tmp_path / "tokens")]
    assert main_command(["tokenize", *words, "--jobs", "1", "--device", "cpu"]) == 0
    (tmp_path / "tokens/audio_cuts.jsonl.gz").unlink()
    with gzip.open(tmp_path / "tokens/cuts.jsonl.gz", "rt") as file:
        lines = [json.loads(line) for line in file]
    windows = []
    for line in lines[1:]:  # the later half of each
        half = line["duration"] / 2
        windows.append({**line, "id": f"{line['id']}-late", "start": half, "duration": half})
    names = ["cuts_train.jsonl.gz", "cuts_test.jsonl.gz"]
    for name, found in zip(names, (lines, windows)):
        with gzip.open(tmp_path / "tokens" / name, "wt") as file:
            file.writelines(json.dumps(line) + "\n" for line in found)
        build_index(tmp_path / "tokens", name[5:-9])
    assert midi(tmp_path / "tokens", "--midi-dir", tmp_path / "midi") == 0
    path = tmp_path / "midi/a.mid"
    assert rows(tmp_path / "tokens") == [notes_of(path, s, s + 2) for s in (0, 2, 4)]
    late = rows(tmp_path / "tokens", "test")
    assert late == [notes_of(path, s, s + 1) for s in (3, 5)] and all(late)
    moved = ["--manifest-dir", str(tmp_path / "tokens"), "--out-dir", str(tmp_path / "shar")]
    assert main_command(["export", *moved, "--format", "shar"]) == 0
    moved = ["--input", str(tmp_path / "shar"), "--out-dir", str(tmp_path / "again")]
    assert main_command(["import", *moved]) == 0
    assert main_command(["index", "--manifest-dir", str(tmp_path / "again")]) == 0
    assert midi(tmp_path / "again", "--midi-dir", tmp_path / "midi") == 0
    assert rows(tmp_path / "again", "test") == late


def test_what_is_odd_in_the_files_is_said(data, capsys):
    tokens, folder = data
    for n in (1, 2):
        write_midi(folder / f"cut-000{n}.mid", *performance(n, 10, 50), [(1, 1, 36, 90)] * n)
    assert midi(tokens, "--midi-dir", folder) == 0
    odd = f"drum notes left out: 3, the first in {folder / 'cut-0001.mid'}"
    assert odd in capsys.readouterr().out


def test_times_belong_to_their_notes(data):
    tokens, folder = data
    assert midi(tokens, "--midi-dir", folder) == 0
    dataset = TokenDataset.open(tokens, "train")
    column, times = (tokens / f"{name}_train.bin" for name in ("midi", "midi-times"))
    notes = read_midi(folder / "cut-0000.mid").notes.between(0, 10)
    stored = Ragged.open(times).read(0)[:, 0]
    assert stored.tolist() == np.rint(notes.time * 10_000).astype(int).tolist()
    steps = Ragged.open(column, dataset.fingerprint).read(0)
    write_ragged(column, [steps[::-1], [], [], []], 6, dataset.fingerprint)
    with pytest.raises(
        UserError, match=r"midi-times_train.bin does not belong to .* run rvqlm midi"
    ):
        ConditionSet.open(dataset, ["midi"])
    info = json.loads((tokens / "midi.json").read_text())
    info.pop("checksum")
    info["settings"]["seconds_unit"] = "fast"
    (tokens / "midi.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"midi.json: seconds_unit is 'fast', not a number; run"):
        ConditionSet.open(dataset, ["midi"])


def test_a_field_names_the_file(data, capsys, monkeypatch):
    tokens, folder = data

    def edit(n, cut):
        cut["custom"] = {"midi_path": f"cut-{(n + 1) % 3:04d}.mid"} if n < 2 else {}
        if n == 2:
            cut["supervisions"] = [{"custom": {"midi_path": str(folder / "cut-0002.mid")}}]
        if n == 3:  # a copy of another speed keeps the fields of its original
            cut["custom"] = {"midi_path": "cut-0001.mid", "augmented_from": "cut-0001"}

    edit_cuts(tokens, edit)
    assert midi(tokens, "--field", "custom.midi_path", "--midi-dir", folder) == 0
    got = rows(tokens)
    assert got[0] == notes_of(folder / "cut-0001.mid", 0, 10)
    assert got[1] == notes_of(folder / "cut-0002.mid", 0, 8)
    assert got[2] == notes_of(folder / "cut-0002.mid", 0, 6)
    assert got[3] == [] and "1 without a MIDI file" in capsys.readouterr().out
    monkeypatch.chdir(folder)
    assert midi(tokens, "--field", "custom.midi_path") == 0 and rows(tokens) == got
    assert midi(tokens, "--field", "duration") == 2
    assert "cut 'cut-0000' of train: duration is '10.0', not a path" in capsys.readouterr().err


def test_bad_files(data, capsys):
    tokens, folder = data
    (folder / "cut-0001.mid").write_bytes(b"MThd, but no more")
    assert midi(tokens, "--midi-dir", folder) == 2
    said = capsys.readouterr().err
    assert "cut 'cut-0001' of train:" in said and "damaged MIDI file" in said
    assert "--skip-bad" in said and not list(tokens.glob("*midi*"))
    write_midi(folder / "cut-0002.mid", [])
    assert midi(tokens, "--midi-dir", folder, "--skip-bad") == 0
    said = capsys.readouterr().out
    assert "1 without a MIDI file; 2 passed over, the first: " in said and "cut-0001.mid" in said
    assert [bool(row) for row in rows(tokens)] == [True, False, False, False]


def test_limits_and_bins(data, capsys):
    tokens, folder = data
    assert midi(tokens, "--midi-dir", folder, "--max-notes", 20) == 0
    assert "3 with more than 20 notes, the others not used" in capsys.readouterr().out
    dataset = TokenDataset.open(tokens, "train")
    conditions = ConditionSet.open(dataset, ["midi"])
    given = conditions.read(Items.whole(np.arange(4), dataset.frames))["midi"]
    assert given.lengths.tolist() == [20, 20, 20, 0]
    late = Items(np.array([0]), np.array([300]), np.array([100]))  # has its own first notes
    assert 0 < int(conditions.read(late)["midi"].lengths[0]) <= 20
    assert load_info(tokens, "midi", "").settings["max_notes"] == 20
    assert midi(tokens, "--midi-dir", folder, "--positions", 100, "--position-step", 0.1) == 0
    info = load_info(tokens, "midi", "")
    assert info.sizes[4] == 101 and info.settings["position_step"] == 0.1
    times = np.array(rows(tokens)[0])[:, 4]
    true = read_midi(folder / "cut-0000.mid").notes.between(0, 10).time
    np.testing.assert_array_equal(times, np.rint(true * 10_000).astype(int) // 1000)
    assert midi(tokens, "--midi-dir", folder, "--positions", 0, "--max-notes", -1) == 2
    said = capsys.readouterr().err
    assert "--positions 0 is not a number from 2" in said and "--max-notes -1" in said


def test_other_bins_leave_no_old_columns(data):
    tokens, folder = data
    for split in ("valid", "test"):
        (tokens / f"cuts_{split}.jsonl.gz").write_bytes(
            (tokens / "cuts_train.jsonl.gz").read_bytes()
        )
        build_index(tokens, split)
    assert midi(tokens, "--midi-dir", folder) == 0
    before, rate = rows(tokens, "valid"), load_info(tokens, "midi", "").rate
    (folder / "cut-0000.mid").unlink()
    assert midi(tokens, "--midi-dir", folder, "--splits", "test") == 0
    assert rows(tokens, "valid") == before and rows(tokens, "test") == [[], *before[1:]]
    assert load_info(tokens, "midi", "").rate == rate  # of the training split
    assert midi(tokens, "--midi-dir", folder, "--splits", "train", "--max-notes", 9) == 0
    left = ["midi-times_train.bin", "midi.json", "midi_train.bin"]
    assert [p.name for p in sorted(tokens.glob("*midi*"))] == left


def test_what_is_refused(data, tmp_path, capsys):
    tokens, folder = data

    def refused(*words):
        assert midi(tokens, *words) == 2
        return capsys.readouterr().err

    assert "give --midi-dir, a folder of MIDI files, or --field" in refused()
    assert f"--midi-dir {tmp_path / 'none'}: no such folder" in refused(
        "--midi-dir", tmp_path / "none"
    )
    assert "no MIDI files (.mid .midi) below it" in refused("--midi-dir", tokens)
    assert "none of 4 cuts has notes: 4 have no MIDI file in 'custom.x'" in refused(
        "--field", "custom.x"
    )
    write_midi(folder / "cut-0000.midi", *performance(0, 10, 50))
    assert "cut-0000.mid and cut-0000.midi" in refused("--midi-dir", folder)
    (folder / "cut-0000.midi").unlink()
    for path in list(folder.iterdir()):
        path.rename(folder / f"other-{path.name}")
    assert f"4 have no MIDI file below {folder} named as its id" in refused("--midi-dir", folder)
    assert main(["--manifest-dir", str(tmp_path)]) == 2
    assert "not a token directory" in capsys.readouterr().err
    for path in tokens.glob("cuts_*"):
        path.unlink()
    assert "run rvqlm split first" in refused("--midi-dir", folder)
