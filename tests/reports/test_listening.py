"""What there is to hear on a page, what stands beside what, and in which order."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from report_page import Page, add_sample, audio_of, build_report, change, recognition

from rvqlm.data.index import TokenDataset, build_index
from rvqlm.data.ragged import Ragged
from rvqlm.data.text_times import TextTimes
from rvqlm.errors import UserError
from rvqlm.frontends.text_prepare import TextConfig, prepare_text
from rvqlm.reports.formatting import render_template
from rvqlm.reports.report import ReportArgs, collect, summary

AUDIO = np.zeros(8000)


def say(exp, name: str, **conditions) -> None:
    """A sample of a text."""
    about = {"kind": "conditioned", "prompt": conditions.pop("cut", None)}
    alignment = {"alignment": found} if (found := conditions.pop("alignment", None)) else {}
    add_sample(exp, name, AUDIO, conditions=conditions, **about, **alignment)


def titles(content: dict, place: str) -> list[list[str]]:
    return [[c["title"] for c in [*a["samples"], *a["references"]]] for a in content[place]]


def test_a_sentence_of_the_users_own_comes_first(exp, tokens, toy_codec, tmp_path):
    voice = tmp_path / "voices" / "ann.wav"
    voice.parent.mkdir()
    soundfile.write(voice, 0.1 * np.ones(8000 * 3), 8000)
    given = {"text": "Good <b>morning</b>.", "midi": "songs/a tune.mid", "prompt": str(voice)}
    say(exp, "told", **given)
    add_sample(exp, "alone", AUDIO, kind="unprompted", prompt=None, conditions={})
    page = Page(build_report(exp, tokens, num_samples=2))
    assert page.open == []
    article = page.text[: page.text.index("A codec turns")]
    assert "Good <b>morning</b>. The model says it told" in article  # escaped, once
    assert "midi a tune.mid" in article and "voice ann.wav" in article
    assert "Voice asked for" in article
    assert not page.find("p", **{"class": "said"})  # the sentence is the heading
    assert np.allclose(audio_of(page)[1][0], 0.1, atol=1e-4)
    assert len(audio_of(page)[1][0]) == 8000 * 3
    assert "From a text or other condition 1 1.0 25.0 % 50.0 %" in page.text
    voice.unlink()
    page = Page(build_report(exp, tokens))
    assert "Not on this page yet" in page.text and "No voice that was asked for" in page.text


def test_error_rates_and_samples_beside_their_sentence(exp, tokens, toy_codec):
    change(exp / "run.json", model="masked")
    say(exp, "a", phonemes="w ɜ", cut="cut1")
    say(exp, "b", text="<words> 2")
    say(exp, "c", text="own", alignment=[["o", 0.0, 0.25], [" ", 0.25, 0.5], ["n", 0.5, 0.75]])
    lines = ["o <space> w <eps> n", "o w w <space> <eps>"]
    rows = [
        {"name": "elsewhere/a.wav", "errors": 1, "symbols": 1, "recognized": "heard it"},
        {"name": "c.wav", "errors": 3, "symbols": 4, "recognized": "oww ", "aligned": lines},
    ]
    named = "gone/recognizer/best.pt"  # as a recipe writes it in another folder
    recognition(exp / "samples" / "recognition.json", 0.367, rows=rows, recognizer=named)
    recognition(exp / "recognizer" / "recognition_test.json", 0.029)
    real = [{"name": "cut1", "errors": 2, "symbols": 8, "recognized": "so"}]
    path = exp / "recognizer" / "recognition_test_audio.json"
    recognition(path, 0.043, interval=None, rows=real)
    content = collect(ReportArgs(exp, tokens))
    # what the user wrote comes first, also where it is a sentence of the split
    assert titles(content, "own") == [["b", "original", "codec"], ["c"]]
    assert titles(content, "rows") == [["a", "original", "codec"], ["original", "codec"]]
    assert [a["id"] for a in content["rows"]] == ["cut1", "cut0"]
    assert content["samples"] == {}
    page = Page(render_template("report.html", **content))
    for words in (
        "Samples of the model 36.7 % 35.7 to 37.7 % 2 1 of 2 90.0 %",
        "Real recordings, stored codes (test) 2.9 %",
        "Real recordings, decoded and encoded again (test) 4.3 % –",
        "1 of 1 symbols heard wrong · 100.0 %",
        "3 of 4 symbols heard wrong · 75.0 % 1 substitution, 1 insertion, 1 deletion",
        "2 of 8 symbols heard wrong · 25.0 %",
        "rvqlm recognize recognition_test_audio",
    ):
        assert words in page.text, words
    assert "o o ␣ ≠ w w w · + ␣ n − ·" in page.text
    for kind, count in (("substitution", 1), ("insertion", 1), ("deletion", 1), ("right", 2)):
        pairs = page.find("span", **{"class": f"pair {kind}"})
        assert len(pairs) >= count
    spans = [
        a
        for t, a in page.tags
        if t == "span" and a.get("style", "").startswith("left: 25.0%; width")
    ]
    assert [a["class"] for a in spans] == ["space"]
    assert "error rate of samples of the model: 36.7%" in summary(content)
    (exp / "samples" / "recognition.json").write_text('{"rows": []}')
    with pytest.raises(UserError, match=r"recognition.json is damaged .*error_rate"):
        collect(ReportArgs(exp, tokens))
    rows[1]["aligned"] = ["o n", "o"]
    recognition(exp / "samples" / "recognition.json", 0.367, rows=rows)
    with pytest.raises(UserError, match=r"c.wav: its two lines are not of one length"):
        collect(ReportArgs(exp, tokens))


def test_rates_of_sounds_alone_and_what_judges_say(exp, tokens, toy_codec):
    say(exp, "a", text="own")
    page = Page(build_report(exp, tokens))
    command = f"rvqlm recognize --recognizer RECOGNIZER --samples {exp / 'samples'}"
    assert f"No error rate of what the model says; run: {command}" in page.text
    rate = {"error_rate": 0.017, "interval": [0.011, 0.024]}
    recognition(exp / "samples" / "recognition.json", 0.035, sounds=rate)
    judged = {
        "summary": {
            "recordings": {"words.wer": {"mean": 0.27, "interval": [0.2, 0.35], "clips": 3}},
            "samples": {"words.wer": {"mean": 0.4}, "<b>.x": {"mean": None}},
        },
        "figures": {"words.wer": {"better": "lower", "meaning": "words wrong", "percent": True}},
        "not_run": {"words": "of another clip", "utmos": "no weights"},
    }
    (exp / "samples" / "judged_x.json").write_text(json.dumps(judged))
    page = Page(build_report(exp, tokens))
    assert page.open == [] and "No error rate of what" not in page.text
    assert "Samples of the model 3.5 % 2.5 to 4.5 % 1.7 % (1.1 to 2.4) 2 1 of 2" in page.text
    assert "words.wer 40.0 % 27.0 % (20.0 to 35.0) <b>.x – –" in page.text
    assert page.find("span", **{"data-tip": "words wrong; lower is better"})
    assert "utmos not run: no weights" in page.text and "of another clip" not in page.text


def test_samples_of_a_text_need_no_transcript(exp, tokens, toy_codec):
    say(exp, "a", phonemes="wɜ", cut="cut1")
    say(exp, "c", text="own")
    page = Page(build_report(exp, tokens))
    assert page.open == [] and "heard wrong" not in page.text and "wɜ" in page.text
    assert not page.find("div", **{"class": "durations"})
    assert not page.find("div", **{"class": "aligned"})
    assert "Does it say its words?" not in page.text


def test_pages_of_many_samples_say_what_they_leave_out(exp, tokens, toy_codec):
    for i in range(3):
        say(exp, f"own-{i}", text=f"Sentence {i}.")
        say(exp, f"cut-{i}", phonemes="wɜ", cut=f"cut{i}")
        add_sample(exp, f"free-{i}", AUDIO, kind="unprompted", prompt=None, conditions={})
    content = collect(ReportArgs(exp, tokens, num_samples=2))
    assert titles(content, "own") == [["own-0"], ["own-1"]]
    assert [a["id"] for a in content["rows"]] == ["cut0", "cut2"]  # one of each voice
    assert [c["title"] for c in content["samples"]["unprompted"]] == ["free-0", "free-1"]
    text = Page(render_template("report.html", **content)).text
    assert "3 more samples are in the experiment's samples folder" in text
    content = collect(ReportArgs(exp, tokens, num_samples=3))
    assert (
        "in the experiment's samples folder"
        not in Page(render_template("report.html", **content)).text
    )


def test_a_voice_is_found_from_any_folder(exp, tokens, toy_codec, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "ann.wav", np.zeros(800), 8000)
    say(exp, "c", text="own", prompt="ann.wav")
    (tmp_path / "elsewhere").mkdir()
    for folder in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(folder)
        assert titles(collect(ReportArgs(exp, tokens)), "own") == [["c", "ann.wav"]]


def test_symbols_of_recordings_last_as_long_as_they_were_found_to(exp, tokens, toy_codec):
    shutil.copy(tokens / "cuts_test.jsonl.gz", tokens / "cuts_train.jsonl.gz")  # for the table
    build_index(tokens, "train")
    prepare_text(TextConfig(tokens, "chars"))
    dataset = TokenDataset.open(tokens, "test")
    text = Ragged.open(tokens / "text_test.bin")
    times = (
        np.arange(18).reshape(9, 2) / 2
    )  # of "<words> 0", half a second each and as much between
    TextTimes.write(dataset, text, [times, None, None])
    content = collect(ReportArgs(exp, tokens))
    drawn = {a["id"]: [c["boxes"] for c in a["references"]] for a in content["rows"]}
    assert not drawn["cut1"][0] and not drawn["cut2"][0] and not drawn["cut0"][1]
    original = drawn["cut0"][0]
    assert "".join(b.symbol for b in original) == "<wor"  # of the 4 seconds of the recording
    assert [b.left for b in original] == [0, 25, 50, 75] and {b.width for b in original} == {12.5}
    (tokens / "text-times_test.bin").write_bytes(b"")
    assert "No durations of recordings" in Page(build_report(exp, tokens)).text
