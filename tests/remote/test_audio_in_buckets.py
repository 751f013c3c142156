"""`rvqlm tokenize` of audio in a bucket: a part fetches its own files, on whatever machine."""

import gzip
import re
from pathlib import Path

import pytest
from buckets import as_another_machine
from test_mirror import upload
from tokenize_fixtures import Peaks, config, make_audio

from rvqlm.audio.sources import open_source
from rvqlm.bin.main import main
from rvqlm.errors import UserError
from rvqlm.remote.bucket import Bucket
from rvqlm.remote.session import finish, localize
from rvqlm.tokenizing import tokenize, workers


@pytest.fixture
def audio(faults, tmp_path, monkeypatch):
    """URL of 24 files."""
    for module in (tokenize, workers):
        monkeypatch.setattr(module, "load_codec", lambda *a: Peaks("a" * 16))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    upload(f"{faults.url}/audio", make_audio(tmp_path / "audio"))
    upload(f"{faults.url}/audio/.hidden", make_audio(tmp_path / "hidden", count=3))
    faults.requests.clear()
    return f"{faults.url}/audio"


def fetched(faults) -> list[str]:
    """Audio files that were asked for, each as often as it was."""
    wavs = [re.search(r"/audio/(.*\.wav)", p) for m, p in faults.requests if m == "GET"]
    return sorted(w[1] for w in wavs if w)


def make(url: str, out: str, part: str | None = None, **flags) -> None:
    made = config(url, out, **flags)
    made.input.part = part
    tokenize.tokenize(localize(made))
    finish()


def test_a_part_fetches_its_files_only(audio, faults, tmp_path, monkeypatch, capsys):
    out, by_part = f"{faults.url}/tokens", []
    for number in range(3):
        as_another_machine(monkeypatch, tmp_path / f"machine-{number}")
        faults.requests.clear()
        make(audio, out, f"{number}/3")
        by_part.append(fetched(faults))
    names = sorted(p.relative_to(tmp_path / "audio").as_posix()
                   for p in (tmp_path / "audio").rglob("*.wav"))  # fmt: skip
    assert [n for some in by_part for n in some] == names  # each once; none that is hidden
    assert all(by_part)
    as_another_machine(monkeypatch, tmp_path / "machine-3")
    faults.requests.clear()
    make(audio, out, "1/3")  # finds its work done
    assert not fetched(faults)
    whole = tmp_path / "whole"
    make(tmp_path / "audio", whole)
    capsys.readouterr()
    assert main(["combine", "--out-dir", out]) == 0
    told = capsys.readouterr().out
    assert f"{out}: 24 cuts" in told and f"--manifest-dir {out}" in told
    folder = Path(localize(out))
    assert ids(folder) == ids(whole)
    # nothing of what all machines read names the cache of one
    cuts = gzip.decompress((folder / "cuts.jsonl.gz").read_bytes()).decode()
    assert f"{out}/codes/shard-" in cuts
    assert str(tmp_path) not in cuts + (folder / "tokens.json").read_text()


def ids(folder: Path) -> list[str]:
    return list(open_source(str(folder / "audio_cuts.jsonl.gz")).ids())


def test_what_is_only_looked_at_is_not_fetched(audio, faults, tmp_path):
    make(audio, str(tmp_path / "out"), dry_run=True)
    with pytest.raises(UserError, match="another input"):
        make(audio, f"{faults.url}/tokens", "0/3")
        make(audio, f"{faults.url}/tokens", "0/3", mono=True)
    assert len(fetched(faults)) < 24


def test_one_file_and_a_list_of_several_inputs(audio, faults, tmp_path):
    make_audio(tmp_path / "here", count=2, seed=1)
    one = localize(config([f"{audio}/speaker1/001.wav", tmp_path / "here"], tmp_path / "out"))
    assert not fetched(faults)
    source = open_source(list(one.input.input))
    assert len(source.scan()) == 3
    source.fetch(0, 3)
    assert fetched(faults) == ["speaker1/001.wav"]
    assert all(Path(item.path).stat().st_size for item in source.items(0, 3))


def test_a_file_that_was_deleted_meanwhile_is_skipped(audio, faults, tmp_path):
    flags = localize(config(audio, tmp_path / "out"))
    Bucket(audio).remove("speaker1/001.wav")
    summary = tokenize.tokenize(flags)
    assert summary.skipped == 1


def test_who_wants_all_of_it_later_has_it(audio, tmp_path):
    flags = localize(config(audio, tmp_path / "out"))
    assert not list(Path(flags.input.input).rglob("*.wav"))
    assert localize(audio) == flags.input.input
    assert len(list(Path(localize(audio)).rglob("*.wav"))) == 27
