"""export, import, npq and decode as a user runs them, on tokens of the embedded codec."""

import contextlib
import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import rvqlm.bin.main
from rvqlm.codecs.registry import load_codec
from rvqlm.exchange.directory import read_token_dir, write_token_dir
from rvqlm.exchange.items import TokenItem, TokenSource
from rvqlm.exchange.npq import read_npq
from rvqlm.exchange.wav import decode_files

IDS = ["one", "日本 語/zwei.b", "../three"]
LEVELS = 4


def command(*words):
    return rvqlm.bin.main.main([str(w) for w in words])


@pytest.fixture(scope="module")
def codec():
    return load_codec("spectral", num_codebooks=LEVELS)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, codec):
    """Three cuts of noise in two splits, with true lengths that are no whole frames."""
    folder = tmp_path_factory.mktemp("data") / "tokens"
    rng = np.random.default_rng(0)
    items = [
        TokenItem(
            id, rng.integers(0, 1024, (9 + n, LEVELS)), split=["train", "test"][n > 0],
            custom={"num_samples": (9 + n) * 320 - 7},
        )
        for n, id in enumerate(IDS)
    ]  # fmt: skip
    write_token_dir(str(folder), codec.info, items, {})
    return folder


def codes(folder):
    return {i.id: i.codes.tolist() for i in read_token_dir(folder)}


def test_export_and_import(tokens, tmp_path, capsys):
    words = ["export", "--manifest-dir", tokens, "--out-dir", tmp_path / "npy", "--format", "npy"]
    assert command(*words) == 0
    assert "3 cuts as npy, train, test" in capsys.readouterr().out
    assert command(*words) == 2 and "not empty" in capsys.readouterr().err
    assert command("import", "--input", tmp_path / "npy", "--out-dir", tmp_path / "back") == 0
    assert codes(tmp_path / "back") == codes(tokens)
    words = ["export", "--manifest-dir", tokens, "--format", "shar", "--shard-size", "1"]
    assert command(*words, "--split", "test", "--out-dir", tmp_path / "s") == 0
    names = sorted(p.relative_to(tmp_path / "s").as_posix() for p in tmp_path.glob("s/*/*.tar"))
    assert names == ["test/features.000000.tar", "test/features.000001.tar"]
    words = ["export", "--manifest-dir", tokens, "--out-dir", tmp_path / "x", "--shard-size"]
    assert command(*words, 5, "--format", "npy") == command(*words, 0, "--format", "shar") == 2


def test_npq_round_trip(tokens, tmp_path, capsys):
    export = ["npq", "export", "--manifest-dir", tokens, "--out-dir"]
    assert command(*export, tmp_path / "n", "--dtype", "uint32") == 0
    assert command("npq", "info", tmp_path / "n", "--json") == 0
    rows = [json.loads(x) for x in capsys.readouterr().out.splitlines()[1:]]
    assert {r["dtype"] for r in rows} == {"uint32"} and rows[0]["layout"] == "v1"
    assert sorted(r["num_frames"] for r in rows) == [9, 10, 11]
    assert command("npq", "import", "--input", tmp_path / "n", "--out-dir", tmp_path / "b") == 0
    assert command("import", "--input", tmp_path / "n", "--out-dir", tmp_path / "c") == 0
    assert codes(tmp_path / "b") == codes(tmp_path / "c")
    assert sorted(map(str, codes(tmp_path / "b").values())) == sorted(
        map(str, codes(tokens).values())
    )
    assert command(*export, tmp_path / "small", "--dtype", "uint8") == 2
    assert "--dtype uint8: codec spectral has 1024 codes" in capsys.readouterr().err
    assert command(*export, tmp_path / "test", "--split", "test") == 0
    assert len(list((tmp_path / "test").rglob("*.npq"))) == 2


def test_npq_to_wav(tokens, tmp_path, codec, capsys):
    command("npq", "export", "--manifest-dir", tokens, "--out-dir", tmp_path / "n")
    file, out = tmp_path / "n/one.npq", tmp_path / "out/a.wav"
    assert command("npq", "to-wav", file, "--out", out) == 0
    said = capsys.readouterr().out
    assert "K=4  fps=50.000  seq_len=9 (0.18 s)  vocab=1024 x 4  dtype=uint16" in said
    audio, rate = soundfile.read(out, dtype="float32")
    want = codec.decode(torch.from_numpy(read_npq(file)[1].astype(np.int64))[None])[0, 0]
    assert rate == 16000 and soundfile.info(out).subtype == "PCM_16"
    assert np.abs(audio - want.numpy()).max() <= 2**-15

    alone = tmp_path / "alone.npq"
    alone.write_bytes(file.read_bytes())
    assert command("npq", "to-wav", alone, "--out", out) == 2
    assert "give --codec" in capsys.readouterr().err
    assert command("npq", "to-wav", alone, "--out", out, "--codec", "spectral") == 0
    alone.write_bytes(file.read_bytes()[:-1])
    assert command("npq", "to-wav", alone, "--out", out, "--codec", "spectral") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_npq_info_of_bad_files(tmp_path, capsys):
    (tmp_path / "a.npq").write_bytes(b"NPQ1")
    assert command("npq", "info", tmp_path / "a.npq") == 2
    assert "1 of 1 files could not be read" in capsys.readouterr().err
    assert command("npq", "info") == 2 and command("npq") == 2
    assert command("npq", "info", "--help") == 0
    assert "legacy-no-kbps" in capsys.readouterr().out


def test_decode(tokens, tmp_path, codec, capsys):
    out = tmp_path / "wavs"
    assert command("decode", "--input", tokens, "--out-dir", out) == 0
    assert "3 wav files, 0.6 s of audio in" in capsys.readouterr().out
    found = {p.relative_to(out).as_posix() for p in out.rglob("*.wav")}
    assert {"one.wav", "日本 語/zwei.b.wav"} < found and len(found) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["wavs"]  # nothing above it
    for item in read_token_dir(tokens):
        if item.id in IDS[:2]:
            audio, _ = soundfile.read(out / f"{item.id}.wav", dtype="float32")
            want = codec.decode(torch.from_numpy(item.codes.astype(np.int64))[None])[0, 0]
            assert len(audio) == item.custom["num_samples"]
            assert np.abs(audio - want.numpy()[: len(audio)]).max() <= 2**-15


def test_decode_resumes(tokens, tmp_path, capsys):
    words = ["decode", "--input", tokens, "--out-dir", tmp_path]
    assert command(*words, "--num", 1) == 0
    before = (tmp_path / "one.wav").stat().st_mtime_ns
    assert command(*words) == 0
    assert "2 wav files" in (said := capsys.readouterr().out) and "1 were there already" in said
    assert (tmp_path / "one.wav").stat().st_mtime_ns == before
    assert command(*words, "--overwrite", "--subtype", "float", "--num-codebooks", 1) == 0
    assert soundfile.info(tmp_path / "one.wav").subtype == "FLOAT"


def test_decode_never_takes_the_file_of_another_item(tmp_path, codec, capsys):
    """Two equal ids in what comes from elsewhere are two items; the second was "there already"."""
    items = [TokenItem(f"x{n}", np.full((5, 4), n), custom={}) for n in range(2)]
    source = TokenSource("npy", "here", iter([replace(i, id="x") for i in items]), codec.info)
    done = decode_files(source, codec, tmp_path)
    assert (done.made, done.kept, [f.id for f in done.failed]) == (1, 0, ["x"])
    assert "would replace the file of another item" in str(done.failed[0])


def test_decode_chosen_ones(tokens, tmp_path, capsys):
    words = ["decode", "--input", tokens, "--out-dir"]
    assert command(*words, tmp_path / "a", "--split", "test", "--num", 1) == 0
    assert [p.name for p in (tmp_path / "a").rglob("*.wav")] == ["zwei.b.wav"]
    assert command(*words, tmp_path / "b", "--ids", IDS[1], "one") == 0
    assert len(list((tmp_path / "b").rglob("*.wav"))) == 2
    assert command(*words, tmp_path / "c", "--ids", "one", "nobody") == 2
    assert "--ids nobody: not in the input" in capsys.readouterr().err


def test_decode_of_anything(tokens, tmp_path, capsys):
    """Exports, manifests and files give the same audio as the directory they came from."""
    command("export", "--manifest-dir", tokens, "--out-dir", tmp_path / "npy", "--format", "npy")
    command("npq", "export", "--manifest-dir", tokens, "--out-dir", tmp_path / "npq")
    inputs = [tokens, tokens / "cuts.jsonl.gz", tmp_path / "npy", tmp_path / "npq/one.npq"]
    inputs += [tmp_path / "npy/codes/one.npy", str(tmp_path / "npq/o*.npq")]
    sound = []
    for n, source in enumerate(inputs):
        assert command("decode", "--input", source, "--num", 1, "--out-dir", tmp_path / f"{n}") == 0
        sound.append(soundfile.read(next((tmp_path / f"{n}").rglob("*.wav")))[0])
    length = len(sound[0])
    assert [len(h) - length for h in sound] == [0, 0, 0, 7, 7, 7]  # files without a true length
    assert all((h[:length] == sound[0]).all() for h in sound)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--num", -1], "--num -1"),
        (["--num-codebooks", 9], "--num-codebooks 9: the tokens have 4 levels"),
        (["--chunk-seconds", 0], "--chunk-seconds 0 must be positive"),
        (["--split", "dev"], "--split dev: no cuts_dev.jsonl.gz"),
        (["--order", "kt"], "--order kt is for .npy files"),
        (["--codec", "nowhere/at-all/x"], "codec nowhere/at-all/x"),
        (["--input", "nowhere"], "nowhere: no tokens there"),
        (["--out-dir", "/dev/null"], "--out-dir /dev/null: a file of that name exists"),
    ],
)
def test_decode_mistakes(tokens, tmp_path, capsys, words, message):
    given = {"--input": tokens, "--out-dir": tmp_path / "w", words[0]: words[1]}
    assert command("decode", *[w for pair in given.items() for w in pair]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "w").exists()


def test_the_codec_must_be_that_of_the_tokens(tokens, tmp_path, capsys):
    side = json.loads((tokens / "tokens.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    side["codec"]["fingerprint"] = "0" * 16
    side.pop("checksum")
    (other / "tokens.json").write_text(json.dumps(side))
    (other / "cuts.jsonl.gz").write_bytes((tokens / "cuts.jsonl.gz").read_bytes())
    assert command("decode", "--input", other, "--out-dir", tmp_path / "w") == 2
    assert "codec mismatch" in capsys.readouterr().err


def test_tokens_of_a_name(tokens, tmp_path, capsys):
    """Imported without the codec at hand; decoded once it is."""
    command("npq", "export", "--manifest-dir", tokens, "--out-dir", tmp_path / "n")
    (tmp_path / "n/codec.json").unlink()
    words = ["npq", "import", "--input", tmp_path / "n", "--out-dir", tmp_path / "t"]
    assert command(*words) == 2
    assert "--codec-name with --sampling-rate" in capsys.readouterr().err
    assert command("import", *words[2:]) == 2  # both commands take them
    assert command(*words, "--codec-name", "lost/codec", "--sampling-rate", 16000) == 0
    assert "[unknown:lost/codec]" in capsys.readouterr().out
    assert command("decode", "--input", tmp_path / "t", "--out-dir", tmp_path / "w") == 2
    words = ["decode", "--input", tmp_path / "t", "--out-dir", tmp_path / "w"]
    assert command(*words, "--codec", "spectral") == 0
    assert "known by name only" in capsys.readouterr().err


@pytest.fixture(scope="module")
def long_tokens(tmp_path_factory, codec):
    folder = tmp_path_factory.mktemp("data") / "tokens"
    item = TokenItem("long", np.zeros((1000, LEVELS), np.int16))  # 8 kB
    write_token_dir(str(folder), codec.info, [item], {})
    return folder


@contextlib.contextmanager
def full_disk():
    """No file may grow beyond 4 KiB; not for longer than needed, pytest writes to one as well."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    "words",
    [
        ["export", "--format", "shar"],
        ["export", "--format", "npy"],
        ["npq", "export"],
        ["decode"],
    ],
)
def test_a_full_disk_is_one_line(long_tokens, tmp_path, capsys, words):
    source = "--input" if words == ["decode"] else "--manifest-dir"
    with full_disk():
        status = command(*words, source, long_tokens, "--out-dir", tmp_path / "o")
    assert status == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(tmp_path / "o") in error and "Traceback" not in error
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]  # nothing half written


@pytest.mark.parametrize("name", ["decode", "export", "importer", "npq", "info"])
def test_as_a_script(name):
    script = Path(rvqlm.bin.main.__file__).with_name(f"{name}.py")
    words = ["info", "--help"] if name == "npq" else ["--help"]
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, timeout=60)
    assert done.returncode == 0 and b"usage" in done.stdout


def test_a_codec_with_scales(tmp_path, capsys, monkeypatch):
    """EnCodec of the 48 kHz kind: audio -> tokens -> every export -> the same audio again."""
    from tiny_codecs import encodec_segments, fill_codebooks, noise

    model = fill_codebooks(encodec_segments(), noise(1, 2, 800))
    model.save_pretrained(tmp_path / "codec")
    (tmp_path / "audio").mkdir()
    for n, size in enumerate((3001, 700)):
        audio = noise(2, size, seed=n) * torch.linspace(0.1, 1, size)
        soundfile.write(tmp_path / f"audio/{n}.wav", audio.T.numpy(), 8000, "FLOAT")
    words = ["--input", tmp_path / "audio", "--codec", tmp_path / "codec", "--jobs", 1]
    run = rvqlm.bin.main.main
    assert run(list(map(str, ["tokenize", *words, "--out-dir", tmp_path / "t"]))) == 0
    first, second = read_token_dir(tmp_path / "t")
    assert len(first.custom["scales"]) == 4 and len(second.custom["scales"]) == 1

    def sound(source, name):
        out = tmp_path / name
        words = ["decode", "--input", source, "--out-dir", out, "--subtype", "float"]
        assert command(*words) == 0
        return [soundfile.read(out / f"{n}.wav")[0] for n in range(2)]

    want = sound(tmp_path / "t", "w")
    assert [w.shape for w in want] == [(3001, 2), (700, 2)]
    for form in ("shar", "npy"):
        words = ["--manifest-dir", tmp_path / "t", "--out-dir", tmp_path / form, "--format", form]
        assert command("export", *words) == 0
        back = tmp_path / f"back-{form}"
        assert command("import", "--input", tmp_path / form, "--out-dir", back) == 0
        for a, b in zip(want, sound(back, f"w-{form}")):
            assert (a == b).all()
    words = ["npq", "export", "--manifest-dir", tmp_path / "t", "--out-dir", tmp_path / "n"]
    assert command(*words) == 2 and "--drop-scales" in capsys.readouterr().err
    assert command(*words, "--drop-scales") == 0
    loud = sound(tmp_path / "n", "w-npq")  # the codec's default instead
    assert len(loud[0]) == 3008 and np.abs(loud[0][:3001] - want[0]).max() > 0.01
