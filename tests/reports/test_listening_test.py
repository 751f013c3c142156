"""A blind listening test: what raters can see, how sides fall, what its key tells."""

import base64
import io
import json
import re
from collections import Counter

import numpy as np
import pytest
import soundfile
from experiments import add_sample, add_training
from report_page import INFO, change

from rvqlm.audio.loudness import Meter
from rvqlm.bin import listen as command
from rvqlm.errors import UserError
from rvqlm.reports.aligned import Aligned
from rvqlm.reports.compare import compare
from rvqlm.reports.listening_test import make_test

NAMES = ("zephyr", "quorum", "vesper")


@pytest.fixture
def three(tmp_path):
    """Three experiments that say the same five texts, each a tone of its own, louder and louder."""
    exps = [tmp_path / name for name in NAMES]
    for place, exp in enumerate(exps):
        add_training(exp)
        for n in range(5):
            about = {"prompt": f"cut{n}", "conditions": {"text": f"<b>text {n}</b>"}}
            wav = add_sample(exp, f"{exp.name}-{n}", kind="conditioned", **about)
            tone = 0.02 * 3**place * np.sin(np.arange(4000) * 0.2 * (place + 1))
            soundfile.write(wav, tone, 8000)
    return exps


def made(exps, kind="preference", manifest_dir=None, recordings=False, seed=0):
    aligned = Aligned.read(compare(exps, evaluated=False), manifest_dir, "test")
    aligned.listen(9, 10.0)
    return make_test(aligned, kind, "", seed, True, recordings)


def test_every_pair_is_asked_about_and_sides_are_balanced(three):
    content, key = made(three)
    pairs = [tuple(clip["system"] for clip in trial["clips"]) for trial in key["trials"]]
    assert len(pairs) == 15 == len({t["id"] for t in key["trials"]})
    counts = Counter(pairs)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        first, second = NAMES[a], NAMES[b]
        assert {counts[first, second], counts[second, first]} == {2, 3}
    assert pairs != sorted(pairs, key=lambda pair: tuple(sorted(pair)))  # in random order
    assert len(content["clips"]) == 15  # each once, though it is in two pairs
    assert made(three) == (content, key)  # seeded
    other, _ = made(three, seed=1)
    assert other["test"] != content["test"]
    items = {trial["item"] for trial in key["trials"]}
    assert items == {f"{n} conditioned cut{n}" for n in range(5)}


def test_the_page_does_not_tell_systems(three, tmp_path, capsys):
    out = tmp_path / "test.html"
    argv = ["make", "--exp-dirs", *map(str, three), "--out", str(out), "--num-prompts", "3"]
    assert command.main(argv) == 0
    assert "9 trials about quorum, vesper, zephyr" in capsys.readouterr().out
    html = out.read_text()
    for word in (*NAMES, str(tmp_path), "cut0", "conditioned", "0\u00b7"):
        assert word not in html, word
    assert not re.search(r"https?://|url\(|@import|(src|href)=[\"'](?!data:)", html)
    assert "<b>text" not in html  # text of samples is no markup
    data = re.search(r'<script type="application/json" id="content">(.*?)</script>', html)[1]
    content = json.loads(data)
    key = json.loads(out.with_suffix(".key.json").read_text())
    assert key["test"] == content["test"] and "rvqlm listen make --exp-dirs" in key["command"]
    assert [t["id"] for t in content["trials"]] == [t["id"] for t in key["trials"]]
    # by the key: the tone that each system has, at one loudness
    for trial, known in zip(content["trials"], key["trials"]):
        for name, clip in zip(trial["clips"], known["clips"]):
            audio, rate = soundfile.read(io.BytesIO(base64.b64decode(content["clips"][name][23:])))
            peak = np.argmax(np.abs(np.fft.rfft(audio)))
            place = NAMES.index(clip["system"])
            assert abs(peak / len(audio) * 2 * np.pi - 0.2 * (place + 1)) < 0.01
            meter = Meter(rate)
            meter.add(audio[None].astype(np.float32))
            assert abs(meter.loudness() + 23) < 0.1


def test_grades_and_recordings(three, tokens, toy_codec):
    for exp in three[:2]:
        about = json.loads((exp / "run.json").read_text())
        about["data"]["codec"] = INFO.to_dict()
        (exp / "run.json").write_text(json.dumps(about))
        for n in range(5):  # in symbols, of which the recordings have the words
            change(exp / "samples" / f"{exp.name}-{n}.json", codec=None,
                   conditions={"phonemes": f"ə {n}"})  # fmt: skip
    content, key = made(three[:2], "rating", tokens, recordings=True)
    systems = Counter(trial["clips"][0]["system"] for trial in key["trials"])
    assert systems == {
        "zephyr": 5, "quorum": 5, "recording": 3, "recording through the codec": 3,
    }  # fmt: skip
    texts = {known["item"]: t["text"] for t, known in zip(content["trials"], key["trials"])}
    assert texts["0 conditioned cut0"] == "<words> 0" and texts["3 conditioned cut3"] is None
    assert content["question"] == "How good does it sound?"


def test_mistakes(three, tmp_path, capsys):
    for wav in (three[1] / "samples").glob("*.json"):
        change(wav, prompt=f"other {wav.stem}", conditions={})
    with pytest.raises(UserError, match="no samples made of the same prompt"):
        made(three[:2])
    argv = ["make", "--exp-dirs", str(three[0]), "--out"]
    for out, words in (("x.htm", "ends with .html"), ("no/x.html", "no folder no")):
        assert command.main([*argv, out]) == 2 and words in capsys.readouterr().err
    assert command.main([*argv, str(tmp_path / "x.html"), "--recordings"]) == 2
    assert "--recordings needs the --manifest-dir" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    add_training(tmp_path / "empty")
    with pytest.raises(UserError, match="nothing to hear"):
        made([tmp_path / "empty"])
