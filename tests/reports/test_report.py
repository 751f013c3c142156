"""The report over an experiment made by hand: what must be on the page, and what may be missing."""

import base64
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet
from report_page import (
    INFO,
    NATS,
    UNIGRAM,
    Page,
    add_sample,
    audio_of,
    bits,
    build_report,
    change,
    recognition,
)

from rvqlm.bin import report as command
from rvqlm.codecs import registry
from rvqlm.errors import UserError
from rvqlm.inference import held_out
from rvqlm.inference.held_out import HeldOutSplit
from rvqlm.reports import figures
from rvqlm.reports.clips import encode_flac
from rvqlm.reports.formatting import number, render_template
from rvqlm.reports.report import ReportArgs, collect, summary


def test_full_page(exp, tokens, toy_codec):
    rng = np.random.default_rng(1)
    continued = 0.1 * rng.standard_normal(8000 * 6)
    add_sample(exp, "alone", 0.1 * rng.standard_normal(8000), kind="unprompted", prompt=None)
    prompt = str(tokens.parent / "audio" / "rec2.wav")
    add_sample(exp, "continued", continued, kind="continuation", prompt=prompt, prompt_seconds=1.5)
    page = Page(build_report(exp, tokens, num_samples=2, max_seconds=10, command="rvqlm report"))
    assert page.open == []  # every tag is closed
    text = page.text

    # headline: held-out, unigram and plain bits per second
    for value in (bits(NATS), bits(UNIGRAM)):
        assert f"{number(value)} bits/s" in text
    assert "900 bits/s" in text  # 3 levels x 6 bits x 50 frames
    assert f"{100 * (1 - sum(NATS) / sum(UNIGRAM)):.1f} % fewer" in text
    assert "an upper bound" in text
    assert "9.1 M parameters" in text
    assert "4.1 min" in text  # elapsed: 490 * 0.5 s
    assert "1.25 %" in text  # padding
    # 49,000 frames in 245 s, the median line of the log beside it
    assert "200 frames/s median 5,250; 4 × real time" in text
    assert "Not on this page yet" not in text

    # provenance
    for word in ("feedc0ffee12", "Test CPU 3000", "base-lr: 0.00123", "2 January 2026"):
        assert word in text
    again = text[text.index("Do it again The commands") :]
    order = [
        again.index(f"rvqlm {c}") for c in ("trainer --exp", "evaluate --exp", "generate --exp")
    ]
    assert order == sorted(order)
    assert "Prepare · 60 s" in text and "Set-up · 9 s" in text  # the longest run of a stage

    # how alive the model is, beside the recordings: 6 seconds of which 1.5 were given
    assert "Continued by the model (new part) 1 4.5 25.0 % 50.0 %" in text

    # levels: nats, unigram, accuracy, perplexity
    for word in ("2.500", "3.200", "31.0 %", f"{math.exp(2.5):.1f}"):
        assert word in text

    # the prompt's recording comes first with its continuation, then another voice
    names = [a["class"] for t, a in page.tags if t == "span" and "chip" in a.get("class", "")]
    assert [n.split()[1] for n in names] == [
        "original", "codec", "model", "original", "codec", "model",
    ]  # fmt: skip
    assert text.index("cut2") < text.index("cut0")
    assert "<words> 2" in text  # escaped
    (given,) = page.find("div", **{"class": "given"})
    assert given["style"] == "width: 25.0%"  # 1.5 of 6 seconds

    sounds = audio_of(page)
    assert {rate for _, rate in sounds} == {8000}
    original, _ = soundfile.read(tokens.parent / "audio" / "rec2.wav")
    np.testing.assert_array_equal(sounds[0][0], original[: 10 * 8000])  # lossless, cut to length
    assert len(sounds[1][0]) == 10 * 8000
    assert set(np.round(np.abs(sounds[1][0]), 3)) == {0.1}  # decoded from the stored codes
    np.testing.assert_allclose(sounds[2][0], continued, atol=1 / 32000)


def test_page_needs_nothing_from_outside(exp, tokens, toy_codec):
    add_sample(exp, "alone", np.zeros(4000), kind="unprompted", prompt=None)
    html = build_report(exp, tokens)
    page = Page(html)
    for _, attrs in page.tags:
        for name in ("src", "href", "data", "poster", "srcset"):
            value = attrs.get(name, "")
            assert value.startswith(("data:", "#")) or not value
    assert not re.search(r"url\(|@import|https?://", html)
    (policy,) = page.find("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'")
    for image in page.find("img"):
        assert base64.b64decode(image["src"].split(",")[1]).startswith(b"\x89PNG")


def test_missing_pieces_are_named_with_their_command(exp, tokens, monkeypatch):
    def missing(*args, **kwargs):
        raise UserError("toy.safetensors not found; get it")

    monkeypatch.setattr(registry, "load_codec", missing)
    (exp / "eval_test.json").unlink()
    for name in ("run.json", "config.yaml", "stages.tsv"):
        (exp / name).unlink()
    (tokens.parent / "audio" / "rec0.wav").unlink()
    page = Page(build_report(exp, tokens))
    assert "Not on this page yet" in page.text
    assert f"rvqlm evaluate --exp-dir {exp} --manifest-dir {tokens} --split test" in page.text
    assert f"rvqlm generate --exp-dir {exp}" in page.text
    assert "toy.safetensors not found" in page.text
    assert "No original of cut0" in page.text
    assert len(audio_of(page)) == 2  # the other two originals
    # validation during training stands in for the evaluation
    best = bits([n + 1.5 * math.exp(-4) for n in NATS])
    assert f"{number(best)} bits per second" in page.text
    assert "best validation during training" in page.text

    (tokens / "index_test.bin").unlink()
    page = Page(build_report(exp, tokens))
    assert "index_test.bin not found" in page.text and not audio_of(page)


def test_what_a_model_was_given_stands_beside_its_figures(exp, tokens, toy_codec):
    page = Page(build_report(exp, tokens))
    assert "given its" not in page.text and "not to be compared with a model" not in page.text
    unsure = {"recordings": 3, "nats": [0.1] * 3, "bits_per_second": 10.0, "plus_minus": 19.6}
    change(exp / "eval_test.json", conditions=["text"], uncertainty=unsure, eval_draws=4)
    content = collect(ReportArgs(exp, tokens))
    text = Page(render_template("report.html", **content)).text
    for words in (
        f"≤ {number(bits(NATS))} bits per second of held-out audio, given its text; ± 19.6",
        "not to be compared with a model that is given nothing",
        "95 % interval over recordings",
        "given the text; 4 random maskings of each",
    ):
        assert words in text, words
    assert f"at most {number(bits(NATS))} +- 19.6 bits/s given text" in summary(content)[0]
    # an evaluation that does not say it: the flags of the training do
    evaluation = json.loads((exp / "eval_test.json").read_text())
    del evaluation["conditions"]
    (exp / "eval_test.json").write_text(json.dumps(evaluation))
    (exp / "config.yaml").write_text("model-name: codec-lm\nconditions: [prompt, text]\n")
    assert "given its prompt and text" in Page(build_report(exp, tokens)).text


def test_masked_training_is_not_drawn_beside_held_out_figures(exp, tokens, toy_codec):
    content = collect(ReportArgs(exp, tokens))
    assert [line["kind"] for line in content["total"]["lines"]] == ["train", "valid"]
    assert content["hidden"] is None
    assert "train" in [bar["kind"] for bar in content["head"]["bars"]]
    change(exp / "run.json", model="masked")
    content = collect(ReportArgs(exp, tokens))
    assert [line["kind"] for line in content["total"]["lines"]] == ["valid"]
    assert all([line["kind"] for line in p["lines"]] == ["valid"] for p in content["panels"])
    assert "train" not in [bar["kind"] for bar in content["head"]["bars"]]
    (line,) = content["hidden"]["lines"]
    assert line["label"] == "train, hidden codes"
    text = Page(render_template("report.html", **content)).text
    assert "not on one scale" in text and "depend on how often each was masked" in text
    change(exp / "eval_test.json", uncertainty={"plus_minus": None})
    assert "how often each was masked" not in Page(build_report(exp, tokens)).text


def test_the_page_of_a_recogniser_offers_what_it_can_do(exp, tokens, toy_codec):
    change(exp / "run.json", model="recognizer")
    (exp / "eval_test.json").unlink()
    page = Page(build_report(exp, tokens))
    command = f"rvqlm recognize --recognizer {exp} --manifest-dir {tokens} --split test"
    assert command in page.text and page.open == []
    for word in ("rvqlm evaluate", "rvqlm generate", "bits per second of held-out", "unigram"):
        assert word not in page.text.split("Do it again")[0]
    recognition(exp / "recognition_test.json", 0.029)
    page = Page(build_report(exp, tokens))
    assert "2.9 % of the symbols of real recordings, stored codes (test) wrong" in page.text
    assert "Not on this page yet" not in page.text
    # what it made of each recording is open to be read
    row = {
        "name": "cut0",
        "recognized": "ac",
        "symbols": 3,
        "errors": 1,
        "aligned": ["a b c", "a <eps> c"],
    }
    recognition(exp / "recognition_test.json", 0.029, rows=[row])
    page = Page(build_report(exp, tokens))
    assert len(page.find("details", **{"class": "heard", "open": None})) == 1
    assert "1 of 3 symbols heard wrong · 33.3 % 1 deletion" in page.text


def test_files_left_out_by_any_stage_are_named(exp, tokens, toy_codec, tmp_path):
    assert "No list of left-out files" in Page(build_report(exp, tokens)).text
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    source = {"path": str(manifests / "cuts.jsonl.gz")}
    change(tokens / "tokens.json", input=source, skipped=4)
    assert "4 left out by rvqlm tokenize" in Page(build_report(exp, tokens)).text
    entries = [{"id": f"f{i}", "path": f"f{i}.mp3", "reason": "no audio in it"} for i in range(4)]
    lists = {
        manifests / "skipped.jsonl": entries[:1],
        manifests / "windows_skipped.jsonl": [],
        manifests / "warned.jsonl": [{"id": "w", "reason": "2 of 12 s are lost"}],
        tokens / "skipped.jsonl": entries,
    }
    for path, lines in lists.items():
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = Page(build_report(exp, tokens)).text
    for words in (
        f"1 item left out ({manifests / 'skipped.jsonl'}): f0.mp3: no audio in it",
        f"1 item kept with a warning ({manifests / 'warned.jsonl'}): w: 2 of 12 s are lost",
        f"4 items left out ({tokens / 'skipped.jsonl'}): f0.mp3: no audio in it; f1.mp3",
    ):
        assert words in text, words
    assert "windows_skipped" not in text and "No list of left-out files" not in text


def test_the_codec_is_named_where_fetching_it_is_asked_for(exp, tokens, monkeypatch):
    """A name out of the tokens alone is for this machine; see `load_codec_like`."""
    asked = []

    def load(info, name=None, *args):
        asked.append(name)
        raise UserError("not here")

    monkeypatch.setattr(held_out, "load_codec_like", load)
    assert "not here (--download looks on the hub" in Page(build_report(exp, tokens)).text
    page = Page(build_report(exp, tokens, download=True))
    assert asked == [None, INFO.name] and "--download" not in page.text


def test_statistics_of_the_splits(exp, tokens, toy_codec):
    split = {"cuts": 1234, "hours": 1.5, "duration": dict.fromkeys(["p0", "p50", "p95", "p100"], 2),
             "codes_used": [61, 62, 63], "entropy_bits": [4.5, 5.0, 5.5],
             "unigram_bits_per_second": 750.0,
             "plan": {"batches": 77, "padding": 0.0017}}  # fmt: skip
    (tokens / "stats.json").write_text(json.dumps({"by": "speaker", "splits": {"train": split}}))
    text = Page(build_report(exp, tokens)).text
    assert "may be in several" not in text and "of speakers that took no part either" in text
    for word in ("1,234", "share a speaker", "61", "5.50", "750 bits/s", "77", "0.17 %"):
        assert word in text


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda exp, tokens: (exp / "metrics.jsonl").unlink(), "holds no training"),
        (lambda exp, tokens: (tokens / "tokens.json").unlink(), "not a token directory"),
        (lambda exp, tokens: (exp / "eval_test.json").write_text("{"), "eval_test.json is damaged"),
        (
            lambda exp, tokens: (exp / "run.json").write_text(
                json.dumps({"data": {"codec": INFO.to_dict() | {"fingerprint": "f" * 16}}})
            ),
            "codec mismatch",
        ),
        (
            lambda exp, tokens: add_sample(exp, "x", np.zeros(9)) or _write(exp, "x.json", "[]"),
            "x.json is damaged",
        ),
        (
            lambda exp, tokens: (
                add_sample(exp, "x", np.zeros(9), kind="unprompted") or _write(exp, "x.wav", "RIFF")
            ),
            "x.wav",
        ),
    ],
)
def test_unusable_input_is_one_clear_line(exp, tokens, toy_codec, capsys, spoil, message):
    spoil(exp, tokens)
    out = exp / "page.html"
    status = command.main(["--exp-dir", str(exp), "--manifest-dir", str(tokens), "--out", str(out)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2
    assert len(lines) == 1 and message in lines[0]
    assert not out.exists()


def _write(exp: Path, name: str, text: str) -> None:
    (exp / "samples" / name).write_text(text)


def test_command_writes_where_it_says(exp, tokens, toy_codec, capsys):
    args = ["--exp-dir", str(exp), "--manifest-dir", str(tokens), "--num-samples", "1"]
    assert command.main(args) == 0
    out = exp / "report.html"
    printed = capsys.readouterr().out
    assert str(out) in printed
    assert f"{number(bits(NATS))} bits/s, unigram {number(bits(UNIGRAM))}" in printed
    assert "original: 1 clip, silent 0 %" in printed
    assert "missing: No samples" in printed
    first = out.read_text()
    assert f"--manifest-dir {tokens}" in first  # its own command is on the page
    assert len(Page(first).find("audio")) == 2
    assert command.main([*args[:-1], "0"]) == 0
    assert len(Page(out.read_text()).find("audio")) == 0
    assert "A title &amp;" not in first
    assert command.main([*args, "--title", "A title & more"]) == 0
    assert "A title &amp; more" in out.read_text()
    assert command.main([*args[:-1], "-1"]) == 2
    assert command.main([*args, "--max-seconds", "0"]) == 2
    assert not list(exp.glob(".*.tmp"))


def test_chart_geometry():
    c = figures.chart(
        [figures.Series("a", "train", [0, 5, 10], [4.0, 2.0, float("nan")])],
        [figures.Reference("r", "unigram", 3.0)],
        limits=(2.0, 4.0),
    )
    # x over the longest series without its missing point, y from the top
    assert c["lines"][0]["path"] == "M0.0 0.0L100.0 100.0"
    assert c["references"][0]["y"] == 50.0
    assert figures.chart([])["lines"] == []  # nothing measured yet


def test_thinning_keeps_means():
    x, y = figures.thin(list(range(1000)), list(range(1000)), limit=100)
    assert len(x) == len(y) == 100
    assert np.mean(y) == pytest.approx(499.5)


def test_spectrogram_shows_what_sounds():
    from PIL import Image

    rate = 16000
    low, high = (0.5 * np.sin(2 * np.pi * hz * np.arange(rate) / rate) for hz in (300, 6000))
    data = figures.spectrogram_png(np.concatenate([low, high]), rate, width=200, height=100)
    image = np.asarray(Image.open(io.BytesIO(data)).convert("L"), float)  # (100, 200)
    assert image.shape == (100, 200)
    assert image[:, 20:80].mean(axis=1).argmax() > 80  # low tone: near the bottom, in the left half
    assert image[:, 120:180].mean(axis=1).argmax() < 20
    silent = figures.spectrogram_png(np.zeros(800), rate, width=50, height=40)
    assert np.asarray(Image.open(io.BytesIO(silent)).convert("L")).max() < 5


def test_flac_survives_what_models_produce():
    audio, _ = soundfile.read(io.BytesIO(encode_flac(np.array([[np.nan, 2.0, -2.0, 0.5]]), 8000)))
    np.testing.assert_allclose(audio, [0, 1, -1, 0.5], atol=1e-4)


def test_chosen_recordings_differ_in_voice(tokens):
    split = HeldOutSplit(tokens, "test", INFO)
    assert split.choose([], 2) == ["cut0", "cut2"]  # cut2 is long, but another voice
    assert split.choose(["cut1"], 2) == ["cut1", "cut2"]
    assert split.choose(["cut0", "cut1", "cut2"], 2) == ["cut0", "cut2"]
    assert split.choose([], 9) == ["cut0", "cut2", "cut1"]


def test_recordings_are_found_by_id_file_or_text(tokens):
    split = HeldOutSplit(tokens, "test", INFO)
    assert split.find("cut1", "<words> 0") == "cut1"
    assert split.find(str(tokens.parent / "audio" / "rec2.wav")) == "cut2"
    assert split.find(None, "<words> 0") == "cut0"
    assert split.find("elsewhere.wav", "own words") is None and split.find(None) is None


def test_originals_are_found_from_any_folder(exp, tokens, toy_codec, tmp_path, monkeypatch):
    manifest = tokens / "audio_cuts.jsonl.gz"
    cuts = [c for c in CutSet.from_file(manifest)]
    for cut in cuts:  # as a command that ran in tmp_path would have written them
        source = cut.recording.sources[0]
        source.source = str(Path(source.source).relative_to(tmp_path))
    CutSet.from_cuts(cuts).to_file(manifest)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in (tmp_path, elsewhere):
        monkeypatch.chdir(folder)
        page = Page(build_report(exp, tokens, num_samples=1))
        assert len(audio_of(page)) == 2 and "No original" not in page.text
