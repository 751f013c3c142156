"""The report over an experiment made by hand: what must be on the page, and what may be missing."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import lhotse
import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording, SupervisionSegment

from rvqlm.bin import report as command
from rvqlm.codec_info import CodecInfo
from rvqlm.codecs import registry
from rvqlm.codecs.base import Codec
from rvqlm.data.index import build_index
from rvqlm.data.store import RvqMmapWriter, token_cut
from rvqlm.errors import UserError
from rvqlm.files import sha256_of
from rvqlm.inference import held_out
from rvqlm.inference.held_out import choose_cuts
from rvqlm.reports import figures
from rvqlm.reports.clips import encode_flac
from rvqlm.reports.formatting import number, render_template
from rvqlm.reports.report import ReportArgs, collect, summary

INFO = CodecInfo("toy", "0123456789abcdef", 8000, 160, 3, 64)
NATS = [2.5, 3.0, 3.5]
UNIGRAM = [3.2, 3.4, 3.6]


class ToyCodec(Codec):
    """Decodes every frame to a constant: 0.1 where the coarse code is odd, else -0.1."""

    def encode(self, audio, lengths=None):
        raise NotImplementedError

    def decode(self, codes):
        signs = 0.2 * (codes[..., 0] % 2).float() - 0.1
        return signs.repeat_interleave(INFO.hop, dim=1)[:, None]


@pytest.fixture
def toy_codec(monkeypatch):
    monkeypatch.setattr(registry, "load_codec", lambda *a, **k: ToyCodec(INFO))


def build_report(*args, command=None, **kwargs) -> str:
    return render_template("report.html", **collect(ReportArgs(*args, **kwargs), command))


def bits(nats: list[float]) -> float:
    return sum(nats) / math.log(2) * 50


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """A token directory with a test split of three recordings by two voices."""
    rng = np.random.default_rng(0)
    directory = tmp_path / "tokens"
    shard = directory / "codes" / "shard-00000.rvq"
    token_cuts, audio_cuts = [], []
    with RvqMmapWriter(shard) as writer:
        for i, (speaker, seconds) in enumerate([("ann", 4.0), ("ann", 5.0), ("bob", 20.0)]):
            wav = tmp_path / "audio" / f"rec{i}.wav"
            wav.parent.mkdir(exist_ok=True)
            audio = 0.2 * rng.standard_normal(int(seconds * INFO.sampling_rate))
            soundfile.write(wav, audio, INFO.sampling_rate, subtype="PCM_16")
            cut = Recording.from_file(wav).to_cut()
            cut.id = f"cut{i}"
            words = SupervisionSegment(f"s{i}", cut.recording.id, 0, seconds, 0, f"<words> {i}")
            words.speaker = speaker
            cut.supervisions = [words]
            codes = rng.integers(0, 64, (round(seconds * 50), 3)).astype(np.int16)
            key = writer.write(cut.id, codes)
            token_cuts.append(
                token_cut(cut.id, shard, key, INFO, cut.recording.id, 0, [words], cut.num_samples)
            )
            audio_cuts.append(cut)
    size = shard.stat().st_size
    sidecar = {
        "codec": INFO.to_dict(), "dtype": "int16", "num_cuts": 3, "num_frames": 1450,
        "hours": 29 / 3600, "skipped": 0, "audio_manifest": "audio_cuts.jsonl.gz",
        "shards": [{"path": "codes/shard-00000.rvq", "bytes": size,
                    "sha256": sha256_of(shard)}],
    }  # fmt: skip
    (directory / "tokens.json").write_text(json.dumps(sidecar))
    CutSet.from_cuts(audio_cuts).to_file(directory / "audio_cuts.jsonl.gz")
    CutSet.from_cuts(token_cuts).to_file(directory / "cuts_test.jsonl.gz")
    build_index(directory, "test")
    return directory


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    """An experiment with everything in it."""
    exp = tmp_path / "exp"
    (exp / "samples").mkdir(parents=True)
    with open(exp / "metrics.jsonl", "w") as f:
        for step in range(10, 500, 10):
            nats = [n + 1.5 * math.exp(-step / 100) for n in NATS]
            record = {
                "kind": "train", "step": step, "epoch": 0, "loss": sum(nats) / 3, "nats": nats,
                "accuracy": [0.1] * 3, "bits_per_second": bits(nats), "frames": 1000,
                "frames_per_second": 5000.0 + step, "padding": 0.0125, "total_frames": step * 100,
                "elapsed": step * 0.5, "memory_mb": 321.0, "lr": 1e-3, "grad_norm": 1.0,
            }  # fmt: skip
            print(json.dumps(record), file=f)
            if step % 100 == 0:
                print(json.dumps(record | {"kind": "valid", "best": True}), file=f)
    run = {"commands": ["rvqlm trainer --exp-dir exp"], "started": ["2026-01-02T03:04:05+00:00"],
           "commit": "feedc0ffee12", "parameters": 9_123_456, "data": {"codec": INFO.to_dict()},
           "machine": {"cpu": "Test CPU 3000", "cores": 2, "gpus": []}}  # fmt: skip
    (exp / "run.json").write_text(json.dumps(run))
    (exp / "config.yaml").write_text("model-name: codec-lm\nbase-lr: 0.00123\n")
    (exp / "stages.tsv").write_text("0\t9\tSet-up\n1\t60\tPrepare\n0\t1\tSet-up\n")
    evaluation = {"split": "test", "step": 490, "cuts": 3, "frames": 1450, "nats": NATS,
                  "accuracy": [0.31, 0.21, 0.11], "bits_per_second": bits(NATS), "bound": True,
                  "unigram_nats": UNIGRAM, "unigram_bits_per_second": bits(UNIGRAM),
                  "command": "rvqlm evaluate --exp-dir exp"}  # fmt: skip
    (exp / "eval_test.json").write_text(json.dumps(evaluation))
    return exp


def add_sample(exp: Path, name: str, audio: np.ndarray, **about) -> None:
    soundfile.write(exp / "samples" / f"{name}.wav", audio, INFO.sampling_rate, subtype="PCM_16")
    about = {"step": 490, "stop": "length", "seed": 7, "silence_ratio": 0.25,
             "repetition_ratio": 0.5, "settings": {"temperature": 0.9, "top_k": 50},
             "command": "rvqlm generate --exp-dir exp"} | about  # fmt: skip
    (exp / "samples" / f"{name}.json").write_text(json.dumps(about))


class Page(HTMLParser):
    """Tags with attributes, and the text without tags."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "line", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("line", "path"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    def find(self, tag: str, **attrs) -> list[dict]:
        return [a for t, a in self.tags if t == tag and attrs.items() <= a.items()]


def audio_of(page: Page) -> list[tuple[np.ndarray, int]]:
    prefix = "data:audio/flac;base64,"
    found = []
    for tag in page.find("audio"):
        assert tag["src"].startswith(prefix)
        found.append(soundfile.read(io.BytesIO(base64.b64decode(tag["src"][len(prefix) :]))))
    return found


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
    assert "Not on this page yet" not in text

    # provenance
    for word in ("feedc0ffee12", "Test CPU 3000", "base-lr: 0.00123", "2 January 2026"):
        assert word in text
    order = [
        text.index(f"rvqlm {c}") for c in ("trainer --exp", "evaluate --exp", "generate --exp")
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


def test_what_was_made_from_a_text(exp, tokens, toy_codec):
    given = {"text": "Good <b>morning</b>.", "midi": "songs/a tune.mid", "prompt": "voices/ann.wav"}
    add_sample(exp, "told", np.zeros(8000), kind="conditioned", prompt=None, conditions=given)
    add_sample(exp, "alone", np.zeros(8000), kind="unprompted", prompt=None, conditions={})
    page = Page(build_report(exp, tokens, num_samples=2))
    assert page.open == []
    headline = "From a text or other condition: the model was told what to make"
    card = page.text[page.text.index(headline) : page.text.index("Pictures show time")]
    assert "Model, conditioned told Good <b>morning</b>." in card  # escaped, under the card's name
    assert "midi a tune.mid" in card and "voice ann.wav" in card
    assert "From a text or other condition 1 1.0 25.0 % 50.0 %" in page.text
    assert len(page.find("p", **{"class": "said"})) == 1


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


def _change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_a_model_was_given_stands_beside_its_figures(exp, tokens, toy_codec):
    page = Page(build_report(exp, tokens))
    assert "given its" not in page.text and "not to be compared with a model" not in page.text
    unsure = {"recordings": 3, "nats": [0.1] * 3, "bits_per_second": 10.0, "plus_minus": 19.6}
    _change(exp / "eval_test.json", conditions=["text"], uncertainty=unsure, eval_draws=4)
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
    _change(exp / "run.json", model="masked")
    content = collect(ReportArgs(exp, tokens))
    assert [line["kind"] for line in content["total"]["lines"]] == ["valid"]
    assert all([line["kind"] for line in p["lines"]] == ["valid"] for p in content["panels"])
    assert "train" not in [bar["kind"] for bar in content["head"]["bars"]]
    (line,) = content["hidden"]["lines"]
    assert line["label"] == "train, hidden codes"
    text = Page(render_template("report.html", **content)).text
    assert "not on one scale" in text and "depend on how often each was masked" in text
    _change(exp / "eval_test.json", uncertainty={"plus_minus": None})
    assert "how often each was masked" not in Page(build_report(exp, tokens)).text


def _recognition(path: Path, rate: float, **more) -> None:
    path.parent.mkdir(exist_ok=True)
    values = {"error_rate": rate, "interval": [rate - 0.01, rate + 0.01], "items": 2,
              "identified": [1, 2], "chance": 0.9, "rows": [],
              "command": f"rvqlm recognize {path.stem}"} | more  # fmt: skip
    path.write_text(json.dumps(values))


def test_error_rates_and_samples_beside_their_sentence(exp, tokens, toy_codec):
    _change(exp / "run.json", model="masked")
    audio = np.zeros(8000)
    add_sample(exp, "a", audio, kind="conditioned", prompt="cut1", conditions={"phonemes": "wɜ"})
    add_sample(exp, "b", audio, kind="conditioned", prompt=None, conditions={"text": "<words> 2"})
    add_sample(exp, "c", audio, kind="conditioned", prompt=None, conditions={"text": "own"})
    rows = [{"name": "elsewhere/a.wav", "errors": 1, "symbols": 1, "recognized": "heard it"}]
    named = "gone/recognizer/best.pt"  # as a recipe writes it in another folder
    _recognition(exp / "samples" / "recognition.json", 0.367, rows=rows, recognizer=named)
    _recognition(exp / "recognizer" / "recognition_test.json", 0.029)
    _recognition(exp / "recognizer" / "recognition_test_audio.json", 0.043, interval=None)
    content = collect(ReportArgs(exp, tokens))
    titles = {row["id"]: [c["title"] for c in row["cards"]] for row in content["rows"]}
    assert titles["cut1"] == ["original", "codec", "a"]
    assert titles["cut2"] == ["original", "codec", "b"] and len(titles["cut0"]) == 2
    assert [c["title"] for c in content["samples"]["conditioned"]] == ["c"]
    text = Page(render_template("report.html", **content)).text
    for words in (
        "Samples of the model 2 36.7 % 35.7 to 37.7 % 1 of 2 90.0 %",
        "Real recordings, stored codes (test) 2 2.9 %",
        "The same, decoded and encoded again (test) 2 4.3 % –",
        "heard it",
        "1 of 1 symbol",
        "rvqlm recognize recognition_test_audio",
    ):
        assert words in text, words
    assert "error rate of samples of the model: 36.7%" in summary(content)
    (exp / "samples" / "recognition.json").write_text('{"rows": []}')
    with pytest.raises(UserError, match=r"recognition.json is damaged .*error_rate"):
        collect(ReportArgs(exp, tokens))


def test_the_page_of_a_recogniser_offers_what_it_can_do(exp, tokens, toy_codec):
    _change(exp / "run.json", model="recognizer")
    (exp / "eval_test.json").unlink()
    page = Page(build_report(exp, tokens))
    command = f"rvqlm recognize --recognizer {exp} --manifest-dir {tokens} --split test"
    assert command in page.text and page.open == []
    for word in ("rvqlm evaluate", "rvqlm generate", "bits per second of held-out", "unigram"):
        assert word not in page.text.split("Do it again")[0]
    _recognition(exp / "recognition_test.json", 0.029)
    page = Page(build_report(exp, tokens))
    assert "2.9 % of the symbols of real recordings, stored codes (test) wrong" in page.text
    assert "Not on this page yet" not in page.text


def test_files_left_out_by_any_stage_are_named(exp, tokens, toy_codec, tmp_path):
    assert "No list of left-out files" in Page(build_report(exp, tokens)).text
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    source = {"path": str(manifests / "cuts.jsonl.gz")}
    _change(tokens / "tokens.json", input=source, skipped=4)
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
    cuts = {c.id: c for c in lhotse.CutSet.from_file(tokens / "audio_cuts.jsonl.gz")}
    assert choose_cuts(cuts, [], 2) == ["cut0", "cut2"]  # cut2 is long, but another voice
    assert choose_cuts(cuts, ["cut1"], 2) == ["cut1", "cut2"]
    assert choose_cuts(cuts, [], 9) == ["cut0", "cut2", "cut1"]


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
