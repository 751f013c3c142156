"""`rvqlm generate` with a table of samples, and with several requests at once."""

import json

import numpy as np
import pytest
import soundfile
import torch
from saved_models import save_model

import rvqlm.bin.generate
from rvqlm.codecs.registry import load_codec
from rvqlm.condition_info import ConditionInfo
from rvqlm.frontends.symbols import SymbolTable
from rvqlm.frontends.text import TextFrontEnd, TextSettings
from rvqlm.inference.generate import OutputArgs, suspect
from rvqlm.models.factory import build_model

HOW = ["--seconds", 0.4, "--min-seconds", 0.2, "--precision", "fp32"]


@pytest.fixture(scope="module")
def exp(tmp_path_factory):
    """A model of texts of a few letters, and a recording beside it."""
    folder = tmp_path_factory.mktemp("exp")
    torch.manual_seed(0)
    table = SymbolTable.of(["<space>", ".", *"abcde"])
    info = TextFrontEnd(TextSettings("chars"), table).info(1.0)
    config = {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 1, "conditions": ("text",)}
    codec = load_codec("spectral", num_codebooks=2).info
    model = build_model("codec-lm", config, codec, {"text": info})
    torch.nn.init.normal_(model.heads.weight)
    save_model(model, folder / "best.pt", ema=False)
    soundfile.write(folder / "a.wav", 0.3 * np.sin(np.arange(16000) / 9), 16000)
    return folder


def run(exp, out, *words):
    words = ["--exp-dir", exp, "--out-dir", out, *HOW, *words]
    return rvqlm.bin.generate.main([str(word) for word in words])


def table(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_table_is_made_and_resumed(exp, tmp_path, capsys):
    out = tmp_path / "out"
    rows = [
        "name\ttext\tprompt\tseconds\tseed\ttop_k",
        "one\tabba\t\t\t\t",
        "two\tcab\t\t0.6\t7\t3",
        "",
        f"sub/three\ta\t{exp / 'a.wav'}\t\t\t",
    ]
    path = table(tmp_path / "list.tsv", *rows)
    words = ["--prompts", path, "--prompt-seconds", 0.1]
    assert run(exp, out, *words) == 0
    assert "list.tsv: 3 samples made, 0 there before, 0 failed" in capsys.readouterr().out
    about = {p.stem: json.loads(p.read_text()) for p in out.glob("*.json")}
    assert set(about) == {"one", "two", "sub_three"} == {p.stem for p in out.glob("*.wav")}
    assert about["one"]["seed"] == 0 and about["two"]["seed"] == 7
    assert about["two"]["settings"]["top_k"] == 3 and about["one"]["settings"]["top_k"] == 0
    assert about["two"]["seconds"] <= 0.6 and about["one"]["seconds"] <= 0.4
    assert about["sub_three"]["prompt_seconds"] == 0.1 and about["sub_three"]["kind"] != "infilling"
    assert about["one"]["asked"]["text"] == ["abba"] and about["one"]["asked"]["seconds"] == 0.4

    # again: nothing is made twice; a row that was lost, or never finished, is, and is the same
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()}
    lost = (out / "two.wav").read_bytes()
    (out / "two.json").unlink()
    (out / "one.wav").unlink()
    assert run(exp, out, *words) == 0
    assert "2 samples made, 1 there before, 0 failed" in capsys.readouterr().out
    assert (out / "two.wav").read_bytes() == lost
    assert (out / "one.wav").read_bytes() == before[out / "one.wav"][0]
    for part in (".wav", ".json"):
        kept = out / f"sub_three{part}"
        assert (kept.read_bytes(), kept.stat().st_mtime_ns) == before[kept]

    # another order and other rows beside it change none; another text is refused, or replaces
    alone = table(tmp_path / "alone.tsv", "seed\tname\ttext\tseconds\ttop_k", "7\ttwo\tcab\t0.6\t3")
    assert run(exp, tmp_path / "alone", "--prompts", alone, "--prompt-seconds", 0.1) == 0
    assert (tmp_path / "alone/two.wav").read_bytes() == lost
    changed = table(tmp_path / "list.tsv", *rows[:1], "one\tbad\t\t\t\t")
    assert run(exp, out, *words) == 1
    said = capsys.readouterr()
    assert "list.tsv:2: " in said.err and "was made with another text" in said.err
    assert run(exp, out, "--prompts", changed, "--prompt-seconds", 0.1, "--overwrite") == 0
    assert json.loads((out / "one.json").read_text())["conditions"]["text"] == "bad"


def test_a_bad_row_ends_no_other(exp, tmp_path, capsys):
    path = table(
        tmp_path / "list.tsv",
        "name\ttext\tseconds\tprompt\tcfg-scale",
        "one\tabba\t\t\t",
        "two\tXYZ\t\t\t",
        "three\tcab\tlong\t\t",
        "\tcab\t\t\t",
        "ONE\tcab\t\t\t",
        "five\tcab",
        "six\t\t\tno.wav\t",
        "seven\tcab\t-1\t\t",
        "eight\t\t\t\t2",
        "nine\tbad\t\t\t2",
    )
    assert run(exp, tmp_path / "out", "--prompts", path) == 1
    said = capsys.readouterr()
    assert "2 samples made, 0 there before, 8 failed" in said.out
    assert {p.stem for p in (tmp_path / "out").glob("*.wav")} == {"one", "nine"}
    for line, reason in (
        (3, "no symbol for 'X'"),
        (4, "seconds 'long': not a number"),
        (5, "no name"),
        (6, f"the name 'ONE' is that of {path}:2"),
        (7, "2 cells where the first line has 5 columns"),
        (8, "no.wav"),
        (9, "--seconds -1.0 must be positive"),
        (10, "there is nothing to be guided by"),
    ):
        (found,) = [row for row in said.err.splitlines() if f"list.tsv:{line}: " in row]
        assert reason in found and found.startswith("rvqlm generate: ")


def test_a_file_that_is_no_table_is_refused(exp, tmp_path, capsys):
    out = tmp_path / "out"
    for header, reason in (
        ("text\tseconds", ":1: no column 'name'"),
        ("name\ttext\tspeedd", ":1: column 'speedd' unknown; there are name, prompt,"),
        ("name\ttext\ttext", ":1: column 'text' twice"),
    ):
        assert run(exp, out, "--prompts", table(tmp_path / "x.tsv", header, "a\tb\tc")) == 2
        assert reason in capsys.readouterr().err
    good = table(tmp_path / "x.tsv", "name\ttext", "a\tcab")
    assert run(exp, out, "--prompts", good, "--text", "abba") == 2
    assert "--text: with --prompts they are columns" in capsys.readouterr().err
    assert run(exp, out, "--prompts", good, "--num-samples", 2) == 2
    assert run(exp, out, "--prompts", tmp_path / "none.tsv") == 2
    assert not list(tmp_path.glob("out/*.wav"))


def test_several_requests_share_a_model(exp, tmp_path, capsys):
    each = [
        ["--text", "abba", "--seed", 3],
        ["--num-samples", 2, "--seconds", 0.5],
        ["--text", "a"],
    ]
    words = [word for part in each for word in ("--each", *part)]
    assert run(exp, tmp_path / "one", *words) == 0
    for part in each:
        assert run(exp, tmp_path / "two", *part) == 0
    names = {p.name for p in (tmp_path / "one").glob("*.wav")}
    kinds = ("conditioned", "unprompted")
    assert names == {f"{kind}-{number}.wav" for kind in kinds for number in ("00", "01")}
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    again = [*words, "--overwrite"]  # of the last alone, which is to replace none of this call
    assert run(exp, tmp_path / "one", *again) == 0
    assert len(list((tmp_path / "one").glob("*.wav"))) == 7
    capsys.readouterr()
    assert run(exp, tmp_path / "one", "--each", "--precision", "bf16", "--each") == 2
    assert "--precision: one for all requests; give it before --each" in capsys.readouterr().err


def test_the_gap_between_two_files(tmp_path, capsys):
    info = load_codec("spectral", num_codebooks=2).info
    torch.manual_seed(0)
    config = {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 1}
    save_model(build_model("masked", config, info), tmp_path / "best.pt", ema=False)
    rng = np.random.default_rng(0)
    for name, samples in (("a", 8100), ("b", 9600)):
        soundfile.write(tmp_path / f"{name}.wav", rng.uniform(-0.2, 0.2, samples), 16000)
    files = [tmp_path / "a.wav", tmp_path / "b.wav"]
    words = ["--exp-dir", tmp_path, "--out-dir", tmp_path / "out", "--infill"]

    def generate(*more):
        return rvqlm.bin.generate.main([str(word) for word in (*words, *more)])

    assert generate(*files, "--gap-seconds", 0.3) == 0
    about = json.loads((tmp_path / "out/infilling-a-b.json").read_text())
    # 8,100 samples are 25 frames and a part of one, which is made anew
    assert about["infill"] == [0.5, 0.82] and about["kind"] == "infilling"
    assert about["prompt"] == str(files[0]) and about["infill_after"] == str(files[1])
    audio, _ = soundfile.read(tmp_path / "out/infilling-a-b.wav")
    assert len(audio) == round(about["seconds"] * 16000) and about["seconds"] == 1.42

    for more, reason in (
        (files, "give --gap-seconds, more than 0"),
        ([*files, files[0], "--gap-seconds", 1], "give a stretch such as 1.5-2.5, or two files"),
        ([*files, "--gap-seconds", 1, "--prompt", files[0]], "these are the prompts"),
        (
            ["0.1-0.2", "--gap-seconds", 1, "--prompt", files[0]],
            "--gap-seconds 1 goes with --infill",
        ),
        ([files[0], "no.wav", "--gap-seconds", 1], "no.wav"),
    ):
        assert generate(*more) == 2
        assert reason in capsys.readouterr().err


@pytest.mark.parametrize("name", ["codec-lm", "valle", "masked"])
def test_a_style_from_a_file(name, tmp_path):
    """The condition `prompt` alone, as of music: another recording gives another sample."""
    codec = load_codec("spectral", num_codebooks=2).info
    config = {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 1, "conditions": ("prompt",)}
    torch.manual_seed(0)
    model = build_model(name, config, codec, {"prompt": ConditionInfo.of_codes("prompt", codec)})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    save_model(model, tmp_path / "best.pt", ema=False)
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{style}.wav" for style in "xy"]
    for path in files:
        soundfile.write(path, rng.uniform(-0.3, 0.3, 16000), 16000)
    out = tmp_path / "out"
    assert run(tmp_path, out, "--voice", *files, "--voice-seconds", 0.5, "--cfg-scale", 2) == 0
    for number, path in enumerate(files):
        about = json.loads((out / f"conditioned-{number:02d}.json").read_text())
        assert about["conditions"]["prompt"] == str(path) and about["kind"] == "conditioned"
    alone = tmp_path / "alone"  # the first again, in the style of the second
    assert run(tmp_path, alone, "--voice", files[1], "--voice-seconds", 0.5, "--cfg-scale", 2) == 0
    sounds = [(folder / "conditioned-00.wav").read_bytes() for folder in (out, alone)]
    assert sounds[0] != sounds[1]


def test_what_is_warned_of():
    about = {"silence_ratio": 0.1, "repetition_ratio": 0.1, "stop": "eos", "conditions": {}}
    about["seconds"] = 5.0
    out = OutputArgs(seconds=5.0)

    def kinds(output=out, overran="", **changes):
        return [said.split(":")[0] for said in suspect({**about, **changes}, output, overran)]

    assert kinds() == [] == kinds(silence_ratio=0.8, repetition_ratio=0.5)
    assert kinds(silence_ratio=0.81) == ["silent"] == kinds(silence_ratio=1, repetition_ratio=1)
    assert kinds(repetition_ratio=0.51) == ["loops"]
    # a piece of music may be cut, a text is not
    spoken = {"stop": "length", "conditions": {"text": "Go."}}
    assert kinds(stop="length") == [] and kinds(**spoken) == ["limit"]
    assert kinds(OutputArgs(seconds=5.0, min_seconds=5.0), **spoken) == []
    assert kinds(**spoken, infill=[1, 2]) == []
    # where the text was said up to there, nothing is wrong
    assert kinds(**spoken, alignment=[("a", 0.0, 4.5)]) == []
    assert kinds(**spoken, alignment=[("a", 0.0, 3.5)]) == ["limit"]
    assert kinds(out, "its text needs 7 s", **spoken) == ["cut"]
