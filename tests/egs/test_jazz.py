"""egs/jazz: both tracks of a pair stay aligned to the sample, from the mix to the codes; what is
discarded stays away; models of Demucs are read without running them; playlists come in order and go
on."""

import gzip
import http.server
import io
import json
import os
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch
import warm
import yaml
from lhotse import CutSet
from report_page import lacking

import rvqlm.data.store  # noqa: F401 - lhotse reads codes by it
from rvqlm.audio.parts import file_recording, recording_cut
from rvqlm.errors import UserError

EGS = Path(__file__).resolve().parents[2] / "egs"
sys.path.insert(0, str(EGS / "jazz/local"))

import data_config  # noqa: E402
import demucs_models  # noqa: E402
import fetch  # noqa: E402
import separate  # noqa: E402
import stand_in  # noqa: E402

SMALL = {
    "demucs": {"n_splits": 1, "n_shifts": 1},
    "rms_window": {"min_window_size_seconds": 1.5, "rms_frame_length_seconds": 0.5},
    "augmentation": {"semitone_steps": [2], "tempo_ratios": [0.9], "n_fft": 512, "hop_length": 128},
    "train_test_split": {"test": 1, "val": 1},
    "dataset": {"seq_len": 60, "stride": 30},
}


def recipe(script: str, *args: str, cwd: Path, status: int = 0) -> str:
    done = subprocess.run(
        [str(EGS / "jazz" / script), *args],
        cwd=cwd, env=warm.environment(), capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def cuts(path: Path) -> dict[str, dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return {cut["id"]: cut for cut in map(json.loads, file)}


def codes(path: Path) -> dict[str, np.ndarray]:
    return {cut.id: cut.load_features() for cut in CutSet.from_file(path)}


def configuration(folder: Path, **changes) -> Path:
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes))
    return path


# ---------------------------------------------------------------------------- the whole recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A folder in which the recipe ran on the stand-in, and what it printed."""
    folder = tmp_path_factory.mktemp("my jazz")
    config, data = str(configuration(folder)), ("--data-dir", "data")
    made = ("--stand-in", "--recordings", "3", "--seconds", "4", "--device", "cpu", "--jobs", "1")
    said = recipe("prepare.sh", "--config", config, *data, *made, cwd=folder)
    said += recipe(
        "run.sh", "--quick", "--data-config", config, *data, "--exp-dir", "exp",
        "--train-minutes", "0.02", "--seconds", "1", "--stage", "2", cwd=folder,
    )  # fmt: skip
    return folder, said


def test_the_recipe_runs_to_the_page(finished):
    folder, said = finished
    assert f"{folder}/exp/report.html" in said
    page = (folder / "exp/report.html").read_text(encoding="utf-8")
    assert not lacking(page) and page.count("data:audio/flac") >= 2
    for name in ("eval_test.json", "eval_test_without_source.json"):
        assert (folder / "exp" / name).exists()


def test_stems_are_as_long_as_the_mix(finished):
    data = finished[0] / "data"
    mixes = cuts(data / "manifests/1_mix/cuts.jsonl.gz")
    assert sorted(mixes) == [f"{n:05d}-standin{n:04d}" for n in (1, 2, 3)]
    for id, mix in mixes.items():
        recording = mix["recording"]
        wanted = round(recording["num_samples"] * 44100 / recording["sampling_rate"])
        for side in ("lead", "backing"):
            info = soundfile.info(data / f"2_stems/{side}/{id}.flac")
            assert (info.frames, info.samplerate, info.channels) == (wanted, 44100, 2)


def test_pairs_are_whole_and_splits_share_no_recording(finished):
    tokens = finished[0] / "data/6_codes"
    lead, backing = (cuts(tokens / f"{side}/cuts.jsonl.gz") for side in ("lead", "backing"))
    assert list(lead) == list(backing) and len(lead) == 3 * 3
    for id, cut in lead.items():
        assert cut["duration"] == backing[id]["duration"]
        assert cut["custom"]["num_samples"] == backing[id]["custom"]["num_samples"]
    seen = [
        {c["custom"]["group"] for c in cuts(tokens / f"lead/cuts_{split}.jsonl.gz").values()}
        for split in ("train", "valid", "test")
    ]
    assert all(seen) and len(set.union(*seen)) == sum(map(len, seen)) == 3


def test_a_dry_run_makes_nothing(tmp_path):
    said = recipe(
        "run.sh", "--quick", "--data-dir", "d", "--exp-dir", "e", "--dry-run", cwd=tmp_path
    )
    for word in (
        "setup.sh --extra jazz",
        "local/separate.py",
        "local/clips.py",
        "rvqlm pair",
        "report",
    ):
        assert word in said
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ aligned, kept and discarded


@pytest.fixture(scope="module")
def separated(tmp_path_factory) -> Path:
    """A folder as stage 2 leaves it, with backing tracks that are the leads at half the level."""
    folder = tmp_path_factory.mktemp("separated")
    manifests, stems = folder / "data/manifests/2_stems", folder / "data/2_stems"
    manifests.mkdir(parents=True)
    draw = np.random.default_rng(0)
    found = {"lead": [], "backing": []}
    for n in range(3):
        noise = draw.normal(0, 0.1, (round(4.3 * 44100), 2)).cumsum(0) * 0.01
        noise = draw.normal(0, 0.1, noise.shape) + noise - noise.mean(0)
        noise[: 30_011 + 997 * n] *= 0.001  # where the lead begins
        for side, level in (("lead", 0.5), ("backing", 0.25)):
            path = stems / side / f"{n}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, level * noise, 44100, subtype="PCM_24")
            recording = file_recording(str(n), str(path), 44100, 2, len(noise))
            found[side].append(recording_cut(recording))
    for side, those in found.items():
        CutSet.from_cuts(those).to_file(manifests / f"{side}.jsonl.gz")
    subprocess.run(
        ["python", EGS / "shared/local/stand_in_codecs.py", folder / "codecs",
         "facebook/encodec_32khz"], env=warm.environment(), check=True, capture_output=True,
    )  # fmt: skip
    return folder


def test_both_tracks_are_cut_copied_and_encoded_alike(separated, monkeypatch):
    """Of equal tracks all that is made is equal; a sample of difference would be seen."""
    monkeypatch.setenv("RVQLM_CODECS", str(separated / "codecs"))
    config = str(configuration(separated))
    words = ("--config", config, "--corpus-dir", "nowhere", "--data-dir", "data", "--device", "cpu")
    recipe("prepare.sh", *words, "--jobs", "1", "--stage", "3", "--stop-stage", "8", cwd=separated)
    data = separated / "data"
    windows = cuts(data / "manifests/4_windows/lead.jsonl.gz")
    assert len(windows) == 3 and all(w["start"] > 0 for w in windows.values())
    lead = {p.stem: p for p in data.glob("*_clips/lead/*.flac")}
    assert len(lead) == 3 * 3
    for path in lead.values():
        a, rate = soundfile.read(path)
        b, _ = soundfile.read(str(path).replace("/lead/", "/backing/"))
        assert rate == 32000 and a.shape == b.shape and a.ndim == 1
        scale = np.dot(a, b) / np.dot(a, a)
        # of copies the phases of what is nearly silent hang on the last bits
        close = 0.03 if "pitch" in path.stem or "tempo" in path.stem else 1e-5
        assert np.abs(b - scale * a).max() < close * np.abs(b).max()
        assert np.abs(b[1:] - scale * a[:-1]).max() > 0.2 * np.abs(b).max()
    # a clip is the stem from the window's first sample on
    for id, window in windows.items():
        stem, _ = soundfile.read(window["recording"]["sources"][0]["source"])
        first, num = round(window["start"] * 44100), round(window["duration"] * 44100)
        wanted = soxr.resample(stem[first : first + num].mean(1), 44100, 32000, "HQ")
        clip, _ = soundfile.read(lead[id])
        gain = np.dot(clip, wanted) / np.dot(wanted, wanted)
        assert len(clip) == len(wanted) and np.abs(clip - gain * wanted).max() < 1e-4
    one, other = (codes(data / f"6_codes/{side}/cuts.jsonl.gz") for side in ("lead", "backing"))
    assert one.keys() == other.keys()
    for id in one:
        copy = "pitch" in id or "tempo" in id
        assert one[id].shape == other[id].shape
        assert (one[id] == other[id]).mean() > (0.7 if copy else 0.98)
        assert (one[id][1:] == one[id][:-1]).mean() < 0.9  # codes that differ from each other
    table = (data / "3_metadata.csv").read_text().splitlines()
    assert table[0] == "clip,recording,start_seconds,end_seconds" and len(table) == 4


def test_what_is_discarded_is_not_made_again(separated, monkeypatch, tmp_path):
    monkeypatch.setenv("RVQLM_CODECS", str(separated / "codecs"))
    data = separated / "data"
    config = str(configuration(separated))
    words = ("--config", config, "--corpus-dir", "nowhere", "--data-dir", "data", "--device", "cpu")
    words += ("--jobs", "1", "--keep", "none", "--stop-stage", "8")
    shown = recipe("prepare.sh", *words, "--stage", "5", "--dry-run", cwd=separated)
    assert "rm -rf" in shown and (data / "2_stems").exists()
    said = recipe("prepare.sh", *words, "--stage", "5", cwd=separated)
    assert "stage 5" in said and "stage 7" in said
    before = codes(data / "6_codes/lead/cuts.jsonl.gz")
    assert sorted(p.name for p in data.iterdir() if p.is_dir()) == ["6_codes", "manifests"]
    said = recipe("prepare.sh", *words, "--stage", "3", cwd=separated)
    assert "stage 8" in said and not any(f"stage {n}" in said for n in range(3, 8))
    after = codes(data / "6_codes/lead/cuts.jsonl.gz")
    assert all((before[id] == after[id]).all() for id in before)
    configuration(separated, rms_window={"rms_threshold": 0.04})
    said = recipe("prepare.sh", *words, "--stage", "3", cwd=separated, status=2)
    assert "with other settings" in said and said.count("error") == 1


# ------------------------------------------------------------------------------- separation


class Halves(torch.nn.Module):
    """A model whose sources are fixed shares of the mix."""

    sources, samplerate, audio_channels, segment = ["drums", "other", "vocals"], 1000, 2, 1.0

    def forward(self, mix):
        return mix[:, None] * torch.tensor([0.5, 0.3, 0.2])[:, None, None]


@pytest.mark.parametrize("n_splits, share", [(1, 0.5), (2, 0.25)])
def test_long_recordings_are_separated_piece_by_piece(n_splits, share):
    """The lead is separated again, what else it holds goes to the rest, and no sample is moved."""
    flags = SimpleNamespace(
        lead=("vocals", "other"), n_splits=n_splits, n_shifts=2, n_jobs=1, device="cpu", seed=0
    )
    work = separate.separator(Halves(), flags)
    mix = np.random.default_rng(0).normal(size=(2, 10_501)).astype(np.float32)
    mix -= mix.mean()
    blocks = [mix[:, :17], mix[:, 17:6000], mix[:, 6000:]]
    made = list(separate.separated(blocks, 4000, 500, work, "a"))
    assert len(made) == 3
    lead, rest = np.concatenate(made, axis=2)
    assert lead.shape == mix.shape
    np.testing.assert_allclose(lead + rest, mix, atol=0.05)
    np.testing.assert_allclose(lead, share * mix, atol=0.05)  # but for the mean of each piece


def test_pieces_overlap_and_miss_nothing():
    signal = np.arange(1000)[None]
    for size, blocks in ((100, [signal]), (1000, [signal]), (333, np.split(signal, 10, axis=1))):
        found = list(separate.pieces(blocks, size, 30))
        assert [last for _, last in found] == [False] * (len(found) - 1) + [True]
        starts = np.arange(len(found)) * (size - 30)
        assert all((p[0] == signal[0, s : s + size]).all() for (p, _), s in zip(found, starts))
        assert found[-1][0][0, -1] == 999 and found[-1][0].shape[1] > 30 * (len(found) > 1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return stand_in.write_model(tmp_path_factory.mktemp("demucs"), 0)


def test_a_published_model_is_what_demucs_makes_of_it(weights):
    from demucs.apply import apply_model
    from demucs.states import load_model

    by_name, digest = demucs_models.load("htdemucs_6s", weights.parent)
    by_path, same = demucs_models.load(str(weights))
    assert digest == same and by_name.sources == stand_in.SOURCES
    assert by_name.models[0].segment == Fraction(39, 10)
    mix = torch.randn(1, 2, 44100)
    theirs = load_model(weights)
    assert torch.equal(apply_model(by_name, mix, shifts=0), apply_model(theirs, mix, shifts=0))
    for name, weight in by_path.models[0].state_dict().items():
        assert torch.equal(weight, theirs.state_dict()[name])


class Trap:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


def test_a_model_that_is_more_than_weights_is_refused(weights, tmp_path):
    with torch.serialization.safe_globals(demucs_models.ALLOWED):
        package = torch.load(weights, weights_only=True)
    marker, path = tmp_path / "marker", tmp_path / "a.th"
    for change, message in [
        ({"training_args": Trap(marker)}, "holds more than"),
        ({"klass": torch.nn.Linear}, "holds more than"),
        ({"klass": Fraction}, "not a model of Demucs"),
        ({"state": {"__quantized": True}}, "quantised"),
        ({"state": {}}, "HTDemucs: Error"),
        ({"kwargs": {"no_such": 1}}, "no_such"),
    ]:
        torch.save(package | change, path)
        with pytest.raises(UserError, match=message) as error:
            demucs_models.load(str(path))
        assert "\n" not in str(error.value)
    assert not marker.exists()
    torch.save({"state": {}}, path)
    with pytest.raises(UserError, match="not loaded"):
        demucs_models.load(str(path))
    path.write_bytes(b"PK\3\4 nothing")
    with pytest.raises(UserError, match="not loaded"):
        demucs_models.load(str(path))
    damaged = tmp_path / weights.name
    damaged.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="damaged: its checksum"):
        demucs_models.load(str(damaged))
    with pytest.raises(UserError, match=r"one of .*htdemucs_6s"):
        demucs_models.load("nothing")
    with pytest.raises(UserError, match=r"no 5c90dfd2-\*.th in"):
        demucs_models.load("htdemucs_6s", tmp_path / "empty")


# ------------------------------------------------------------------------------ the playlist


def wav(pitch: float) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.1 * np.sin(pitch * np.arange(8000)), 8000, format="WAV")
    return buffer.getvalue()


class Playlist(http.server.BaseHTTPRequestHandler):
    """An RSS feed of three recordings, in this order, one of which may be gone."""

    files = {f"/{name}.wav": wav(n / 10) for n, name in enumerate("zya", 1)}
    gone: set[str] = set()
    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        here, kind, body = f"http://{self.headers['Host']}", "audio/wav", self.files.get(self.path)
        if self.path == "/list.xml":
            links = "".join(
                f"<item><title>t</title><link>{here}{f}</link></item>" for f in self.files
            )
            body = (
                f"<?xml version='1.0'?><rss version='2.0'><channel>{links}</channel></rss>".encode()
            )
            kind = "application/rss+xml"
        if body is None or self.path in self.gone:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def playlist():
    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, *args):  # yt-dlp hangs up once it knows what a file is
            pass

    server = Quiet(("127.0.0.1", 0), Playlist)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Playlist.gone, Playlist.asked = set(), []
    yield f"http://127.0.0.1:{server.server_port}/list.xml"
    server.shutdown()
    server.server_close()


def test_a_playlist_comes_in_order_and_goes_on_where_it_ended(playlist, tmp_path, capsys):
    folder = tmp_path / "my downloads"

    def files() -> list[str]:
        return sorted(p.name for p in folder.glob("*.wav"))

    Playlist.gone = {"/y.wav"}
    assert "2 recordings" in fetch.fetch(playlist, folder)
    assert "1 of 3 could not be fetched: 2, " in capsys.readouterr().err
    assert files() == ["00001-z.wav", "00003-a.wav"]
    Playlist.gone, Playlist.asked = set(), []
    assert "3 recordings" in fetch.fetch(playlist, folder)
    assert files() == ["00001-z.wav", "00002-y.wav", "00003-a.wav"]
    assert (
        Playlist.asked.count("/y.wav") > 1
    )  # the page, then the file; of the others the page alone
    assert Playlist.asked.count("/z.wav") == Playlist.asked.count("/a.wav") == 1
    listed = [json.loads(line) for line in (folder / "playlist.jsonl").read_text().splitlines()]
    assert [e["file"] for e in listed] == files() and not any(e["reason"] for e in listed)
    assert (folder / "00002-y.wav").read_bytes() == Playlist.files["/y.wav"]
    (folder / "00001-z.wav").unlink()  # lost, though the archive has it
    assert "3 recordings" in fetch.fetch(playlist, folder) and len(files()) == 3
    with pytest.raises(UserError, match="404"):
        fetch.fetch(playlist.replace("list.xml", "none"), folder)


# -------------------------------------------------------------------------- the configuration


def read(folder: Path, values: dict) -> dict[str, str]:
    path = folder / "x.yaml"
    path.write_text(yaml.safe_dump(values))
    return data_config.entries(data_config.read(path))


def test_the_shipped_configuration_says_the_defaults_and_all_keys(tmp_path):
    shipped = data_config.read(EGS / "jazz/conf/data.yaml")
    assert shipped == data_config.Data()
    values = yaml.safe_load((EGS / "jazz/conf/data.yaml").read_text())
    lacking = {"datasets_dir", "padding_idx"}  # of SaxGPT's, without use here
    known = {
        k for group in vars(data_config).values() for k in getattr(group, "__struct_fields__", ())
    }
    there = set(values) | {k for v in values.values() if isinstance(v, dict) for k in v}
    assert known - there == lacking


def test_settings_change_with_what_the_audio_depends_on(tmp_path):
    plain = read(tmp_path, {})["settings"]
    same = [
        {"demucs": {"n_jobs": 1}},
        {"intermediates": {"keep_dl": False}},
        {"dataset": {"stride": 1}},
    ]
    other = [{"demucs": {"n_splits": 1}}, {"encodec": {"chunk_len_s": 5}}, {"url": "a"}]
    assert {read(tmp_path, v)["settings"] for v in same} == {plain}
    assert len({read(tmp_path, v)["settings"] for v in [{}, *other]}) == 4


@pytest.mark.parametrize(
    "values, message",
    [
        ({"intermediates": {"keep_codes": False}}, "nothing to train on"),
        ({"dataset": {"padding_idx": 7}}, "padding is no code"),
        ({"demucs": {"n_split": 2}}, "n_split"),
        ({"rms_window": {"rms_threshold": "high"}}, "rms_threshold"),
        ({"demucs": {"lead": []}}, "lead"),
    ],
)
def test_mistakes_in_it_are_one_line(values, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, values)
    assert "\n" not in str(error.value)


def test_a_configuration_of_saxgpt_is_read(tmp_path):
    values = yaml.safe_load((EGS / "jazz/conf/data.yaml").read_text())
    for group, keys in (("demucs", ("model", "weights", "lead", "target_lufs")),
                        ("encodec", ("codec", "num_codebooks"))):  # fmt: skip
        values[group] = {k: v for k, v in values[group].items() if k not in keys}
    values["data_paths"]["datasets_dir"] = "7_datasets"
    values["dataset"]["padding_idx"] = 2048
    assert read(tmp_path, values)["n_splits"] == "2"
    assert (
        data_config.entries(data_config.read(tmp_path / "x.yaml"), "dl clips")["keep_dl"] == "true"
    )
    assert data_config.entries(data_config.read(tmp_path / "x.yaml"), "none")["keep_dl"] == "false"
    with pytest.raises(UserError, match="--keep everything"):
        data_config.entries(data_config.read(tmp_path / "x.yaml"), "everything")
