"""Codes that lie in lhotse's own feature stores, written by lhotse."""

import gzip
import json

import numpy as np
import pytest
from exchange_fixtures import contents
from lhotse import CutSet, Features, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.features import io as stores

from rvqlm.errors import UserError
from rvqlm.exchange.codec import CodecArgs
from rvqlm.exchange.convert import import_tokens
from rvqlm.exchange.features import read_features
from rvqlm.exchange.items import Skipped
from rvqlm.exchange.source import open_tokens

NAMED = CodecArgs(codec_name="some/codec", sampling_rate=16000, codebook_size=1024)
SHIFT = 0.02


def codes_of(n):
    codes = np.random.default_rng(n).integers(0, 1024, (40 + n, 4))
    codes[0] = 1023
    return codes


def store(folder, writer, dtype, count=3):
    """A manifest of cuts over arrays that a writer of lhotse stored; the last is a window."""
    cuts = []
    with writer:
        for n in range(count):
            codes = codes_of(n).astype(dtype)
            duration = round(len(codes) * SHIFT, 4)
            held = Features(
                "encodec", *codes.shape, SHIFT, 16000, 0.0, duration, writer.name,
                str(writer.storage_path), writer.write(f"cut-{n}", codes), f"rec-{n}", 0,
            )  # fmt: skip
            cut = MonoCut(f"cut-{n}", 0.0, duration, 0, features=held)
            cut.supervisions = [SupervisionSegment("s", f"rec-{n}", 0.0, 0.5, text=f"text {n}")]
            cuts.append(cut)
    cuts[-1] = cuts[-1].truncate(offset=0.1, duration=0.4, preserve_id=True)
    CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
    return folder / "cuts.jsonl.gz"


@pytest.mark.parametrize(
    "kind, name, dtype",
    [
        ("NumpyFilesWriter", "store", np.int64),
        ("NumpyFilesWriter", "store", np.float32),
        ("NumpyHdf5Writer", "store.h5", np.int16),
        ("LilcomFilesWriter", "store", np.float32),
        ("LilcomChunkyWriter", "store.lca", np.float32),
        ("LilcomHdf5Writer", "store.h5", np.float32),
        ("ChunkedLilcomHdf5Writer", "store.h5", np.float32),
    ],
)
def test_codes_come_back(tmp_path, kind, name, dtype):
    if "Lilcom" in kind:
        pytest.importorskip("lilcom")
    if "Hdf5" in kind:
        pytest.importorskip("h5py")
    manifest = store(tmp_path, getattr(stores, kind)(str(tmp_path / name)), dtype)
    written, info = import_tokens(open_tokens([manifest]), str(tmp_path / "t"), NAMED)
    assert (written.num_cuts, written.skipped) == (3, 0)
    assert (info.hop, info.num_codebooks, info.fingerprint) == (320, 4, "unknown:some/codec")
    got = contents(tmp_path / "t")
    expected = [codes_of(0), codes_of(1), codes_of(2)[5:25]]
    assert [g[1] for g in got] == [c.tolist() for c in expected]
    assert [g[0] for g in got] == ["cut-0", "cut-1", "cut-2"] and got[1][3] == "rec-1"
    assert [g[5][0]["text"] for g in got] == ["text 0", "text 1", "text 2"]


def test_arrays_in_custom_fields(tmp_path):
    """As trainers of VALL-E keep them: a temporal array beside the audio, with its recording."""
    recording = Recording("rec", [AudioSource("file", [0], "rec.wav")], 16000, 64000, 4.0)
    cuts = []
    with stores.NumpyFilesWriter(str(tmp_path / "s")) as writer:
        for n in range(4):
            cut = recording.to_cut().truncate(offset=0.5 * n, duration=len(codes_of(n)) * SHIFT)
            cut.id = f"cut-{n}"
            # frames from the beginning of the cut, which lies within the recording
            values = {"temporal_dim": 0, "frame_shift": SHIFT, "start": cut.start}
            if n == 2:
                values = {}  # an array without time
            cut.audio_features = writer.store_array(f"{n}", codes_of(n).astype(np.int16), **values)
            cut.custom |= {"key": "C major"}
            if n == 3:
                cut.loudness = writer.store_array("l", np.zeros((7, 2), np.float32))
            cuts.append(cut)
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    written, _ = import_tokens(
        open_tokens([tmp_path / "cuts.jsonl.gz"]), str(tmp_path / "t"), NAMED
    )
    assert (written.num_cuts, written.skipped) == (4, 0)
    assert [g[1] for g in contents(tmp_path / "t")] == [codes_of(n).tolist() for n in range(4)]
    made = list(CutSet.from_file(tmp_path / "t/cuts.jsonl.gz"))
    assert [c.custom["recording_start"] for c in made] == [0.0, 0.5, 1.0, 1.5]
    assert all(c.custom["key"] == "C major" and "audio_features" not in c.custom for c in made)
    lines = [cut.to_dict() for cut in cuts]
    lines[3]["custom"]["other"] = lines[3]["custom"].pop("audio_features")
    lines[0]["custom"]["audio_features"]["temporal_dim"] = 1
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = list(read_features(tmp_path / "m.jsonl"))
    assert [isinstance(item, Skipped) for item in found] == [True, False, False, True]
    assert "time is dimension 1" in found[0].reason and "loudness, other" in found[3].reason


def test_a_folder_of_splits(tmp_path):
    """What `data/tokenized` of AudioLM on VALL-E looks like."""
    store(tmp_path, stores.NumpyFilesWriter(str(tmp_path / "s")), np.int16)
    cuts = [*CutSet.from_file(tmp_path / "cuts.jsonl.gz")]
    (tmp_path / "cuts.jsonl.gz").unlink()
    for cut, name in zip(cuts, ("train", "validation", "test")):
        CutSet.from_cuts([cut]).to_file(tmp_path / f"cuts_{name}.jsonl.gz")
    import_tokens(open_tokens([tmp_path]), str(tmp_path / "t"), NAMED)
    for n, name in enumerate(("train", "valid", "test")):
        (cut,) = CutSet.from_file(tmp_path / f"t/cuts_{name}.jsonl.gz")
        assert cut.id == f"cut-{n}"
    assert [i.id for i in open_tokens([tmp_path], "valid").items] == ["cut-1"]
    with pytest.raises(UserError, match=r"--split dev: .* has train, test, valid"):
        open_tokens([tmp_path], "dev")
    (tmp_path / "cuts_test.jsonl.gz").unlink()
    (tmp_path / "cuts_test.jsonl.gz").write_bytes(gzip.compress(b'{"id": "a", "type": "MonoCut"}'))
    with pytest.raises(UserError, match="cuts without codes; give a folder"):
        open_tokens([tmp_path])


def test_features_alone_and_stores_that_moved(tmp_path):
    (tmp_path / "a").mkdir()
    cuts = CutSet.from_file(store(tmp_path / "a", stores.NumpyFilesWriter(f"{tmp_path}/a/s"), int))
    with open(tmp_path / "a/features.jsonl", "w") as file:
        for cut in cuts:
            line = cut.features.to_dict() | {"storage_path": "s"}  # beside the manifest
            file.write(json.dumps(line) + "\n")
    items = list(open_tokens([(tmp_path / "a").rename(tmp_path / "b") / "features.jsonl"]).items)
    assert [i.id for i in items] == ["rec-0", "rec-1", "rec-2"]
    assert all((i.codes == codes_of(n)).all() for n, i in enumerate(items))


def test_what_is_no_codes_is_named_and_the_rest_read(tmp_path):
    manifest = store(tmp_path, stores.NumpyFilesWriter(str(tmp_path / "s")), np.float32, 9)
    lines = [cut.to_dict() for cut in CutSet.from_file(manifest)]
    paths = [tmp_path / "s" / line["features"]["storage_key"] for line in lines]
    np.save(paths[0], np.full((5, 4), 0.3, np.float32))
    np.save(paths[1], np.full((5, 4), np.nan, np.float32))
    np.save(paths[2], np.array([{}] * 3), allow_pickle=True)
    paths[3].write_bytes(paths[3].read_bytes()[:-8])
    paths[4].unlink()
    lines[5]["start"] = 5.0
    lines[6]["features"]["storage_type"] = "lilcom_url"
    lines[7] = {"id": "mix", "type": "MixedCut", "tracks": []}
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    *bad, good = read_features(tmp_path / "m.jsonl")
    assert good.id == "cut-8" and all(isinstance(item, Skipped) for item in bad)
    for item, reason in zip(
        bad,
        ["features, not tokens", "features, not tokens", "Python objects", "", "No such file",
         "frames 250 to", "stored as lilcom_url, not numpy_files", "a MixedCut stored as"],
        strict=True,
    ):  # fmt: skip
        assert reason in item.reason and item.path.startswith(str(tmp_path / "m.jsonl, entry "))


def test_hdf5_claims_no_more_than_it_has(tmp_path):
    h5py = pytest.importorskip("h5py")
    manifest = store(tmp_path, stores.NumpyHdf5Writer(str(tmp_path / "s.h5")), np.int16)
    (tmp_path / "secret").write_bytes(b"12345678")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        for n in range(3):
            del file[f"cut-{n}"]
        file.create_dataset("cut-0", (1 << 32, 4), "i2", chunks=(1024, 4))  # 32 GB, none stored
        file["cut-1"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "x")
        file.create_dataset("cut-2", (2, 4), "i1", external=[(str(tmp_path / "secret"), 0, 8)])
    items = list(read_features(manifest))
    assert [type(i) for i in items] == [Skipped] * 3
    for item, reason in zip(items, ["claims 34,359,738,368 bytes", "of its own", "of its own"]):
        assert reason in item.reason


def test_other_manifests_say_what_they_are(tmp_path):
    def refused(line, message):
        (tmp_path / "m.jsonl").write_text(json.dumps(line) + "\n")
        with pytest.raises(UserError, match=message):
            open_tokens([tmp_path / "m.jsonl"])

    refused({"id": "mix", "type": "MixedCut", "tracks": []}, "cut 'mix' mixes several recordings")
    refused({"id": "a", "type": "MonoCut"}, "cuts without tokens; give token cuts")
    url = {"id": "a", "type": "MonoCut", "features": {"storage_type": "lilcom_url"}}
    refused(url, "stored as 'lilcom_url'; copy them to files of numpy first")
