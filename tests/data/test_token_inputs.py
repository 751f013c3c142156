"""What `rvqlm tokenize` can be pointed at."""

import json
import shutil

import numpy as np
import pytest
from lhotse import CutSet, RecordingSet
from tokenize_fixtures import config, lines

from rvqlm.data import tokenize
from rvqlm.data.token_inputs import Listing, open_source
from rvqlm.errors import UserError

pytestmark = pytest.mark.usefixtures("peaks")


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.json", "r.yaml"])
def test_recordings_manifest(corpus, tmp_path, name):
    recordings = RecordingSet.from_dir(corpus, "*.wav")
    recordings.to_file(tmp_path / name)
    tokenize.tokenize(config(tmp_path / name, tmp_path / "out", jobs=2))
    made = CutSet.from_file(tmp_path / "out" / "cuts.jsonl.gz")
    assert [c.id for c in made] == [r.id for r in recordings]


def test_glob_and_single_file(corpus, tmp_path):
    tokenize.tokenize(config(corpus / "speaker1" / "*.wav", tmp_path / "a"))
    assert [c["id"] for c in lines(tmp_path / "a" / "cuts.jsonl.gz")][:2] == ["001", "004"]
    tokenize.tokenize(config(corpus / "speaker1" / "004.wav", tmp_path / "b"))
    assert [c["id"] for c in lines(tmp_path / "b" / "cuts.jsonl.gz")] == ["004"]


def test_files_of_one_name_keep_their_suffix(corpus):
    shutil.copy(corpus / "speaker0" / "000.wav", corpus / "speaker0" / "000.flac")
    ids = [*open_source(str(corpus)).ids()]
    assert ids[:3] == ["speaker0/000.flac", "speaker0/000.wav", "speaker0/003"]
    assert len(set(ids)) == 25


def test_work_is_divided_by_cost():
    rng = np.random.default_rng(0)
    for n, parts in ((1, 1), (5, 5), (100, 3), (1000, 7), (3, 3)):
        ranges = Listing(rng.uniform(0.1, 1, n), "", None).split(parts)
        assert len(ranges) == parts
        assert [i for a, b in ranges for i in range(a, b)] == list(range(n))
    costs = np.ones(100)
    costs[:10] = 10
    (a, b), (c, d) = Listing(costs, "", None).split(2)
    assert abs(costs[a:b].sum() - costs[c:d].sum()) <= 10


def manifest_of(tmp_path, *documents, name="m.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(d) + "\n" for d in documents))
    return path


def test_input_that_nothing_can_be_made_of(tmp_path, corpus):
    def error(path):
        with pytest.raises(UserError) as e:
            tokenize.tokenize(config(path, tmp_path / "out"))
        assert not (tmp_path / "out").exists() and "\n" not in str(e.value)
        return str(e.value)

    assert "no such file or folder" in error(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no audio" in error(tmp_path / "empty")
    assert "no file with audio" in error(tmp_path / "*.wav")
    (tmp_path / "x.txt").write_text("# nothing\n\n")
    assert "the list is empty" in error(tmp_path / "x.txt")
    (tmp_path / "x.pdf").touch()
    assert "neither audio" in error(tmp_path / "x.pdf")
    (tmp_path / "e.jsonl").touch()
    assert "manifest is empty" in error(tmp_path / "e.jsonl")
    segment = {"id": "s", "recording_id": "r", "start": 0, "duration": 1.0, "channel": 0}
    assert "a manifest of supervisions; tokenize needs" in error(manifest_of(tmp_path, segment))
    cut = {"id": "c", "start": 0, "duration": 1, "channel": 0, "type": "MonoCut"}
    assert "cuts without recordings" in error(manifest_of(tmp_path, cut))
    mixed = {"id": "c", "duration": 1, "tracks": [], "type": "MixedCut"}
    assert "MixedCut" in error(manifest_of(tmp_path, mixed))
    recording = RecordingSet.from_dir(corpus, "*.wav").to_eager()[0].to_dict()
    assert f"two items have the id {recording['id']!r}" in error(
        manifest_of(tmp_path, recording, recording)
    )
    (tmp_path / "bad.jsonl").write_text(json.dumps(recording) + "\n{oops\n")
    assert "item 2 is no lhotse recording or cut" in error(tmp_path / "bad.jsonl")
    (tmp_path / "bad.jsonl.gz").write_bytes(b"not gzip")
    assert "cannot read item 1" in error(tmp_path / "bad.jsonl.gz")
    (tmp_path / "bad.yaml").write_text("{")
    assert "not a lhotse manifest" in error(tmp_path / "bad.yaml")


def test_wrong_rate_in_a_manifest_is_skipped(tmp_path, corpus):
    good, wrong = [r.to_dict() for r in RecordingSet.from_dir(corpus, "*.wav")][:2]
    wrong["sampling_rate"], wrong["duration"] = 16000, wrong["duration"] / 2
    out = tmp_path / "out"
    assert tokenize.tokenize(config(manifest_of(tmp_path, good, wrong), out)).skipped == 1
    assert "8000 Hz, its manifest says 16000" in lines(out / "skipped.jsonl")[0]["reason"]
