"""egs/custom/run.sh --task tts on a folder of somebody's sentences, to the page."""

import json
import sys

import pytest
import soundfile
from test_custom_run import EGS, recipe

WORDS = [
    "Guten", "Morgen", "liebe", "Leute", "heute", "kommen", "sieben", "gute", "Boote", "mit",
    "neuen", "Netzen",
]  # fmt: skip


@pytest.fixture
def voice(tmp_path, monkeypatch):
    """A folder with 24 German sentences and their table, which has a heading."""
    monkeypatch.syspath_prepend(str(EGS / "mini/local"))
    from speech import synthesize

    folder = tmp_path / "my voice"
    folder.mkdir()
    table = ["path\ttext\tspeaker"]
    for n in range(24):
        text = " ".join(WORDS[(n * (k + 1) + k) % len(WORDS)] for k in range(4)) + "."
        audio, rate = synthesize(text, "de")
        soundfile.write(folder / f"s{n:02d}.flac", audio, rate)
        table.append(f"s{n:02d}.flac\t{text}\tanna")
    (folder / "texts.tsv").write_text("\n".join(table) + "\n", encoding="utf-8")
    sys.modules.pop("speech", None)
    return tmp_path


def test_from_recordings_with_texts_to_new_sentences(voice):
    done = recipe(
        "run.sh", "--audio", "my voice", "--task", "tts", "--language", "de", "--texts",
        "my voice/texts.tsv", "--config", str(EGS / "mini/conf/tts_quick.yaml"), "--train-minutes",
        "0.1", "--listen-minutes", "0.1", "--num-samples", "2", "--judge", "0",
        "--say", "Sieben neue Boote.",
        "--prepare", "--valid 3 --test 3", "--data-dir", "data", "--exp-dir", "exp", "--stage", "1",
        cwd=voice,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    verdict = json.loads((voice / "exp/samples/recognition.json").read_text())
    assert len(verdict["rows"]) == 3
    own = json.loads((voice / "exp/samples/conditioned-00.json").read_text())
    assert own["conditions"]["text"] == "Sieben neue Boote."
    text = json.loads((voice / "data/tokens/text.json").read_text())
    assert "de" in json.dumps(text) and "en-us" not in json.dumps(text)
    page = (voice / "exp/report.html").read_text(encoding="utf-8")
    assert "Sieben neue Boote." in page


def test_what_is_missing_is_said(tmp_path):
    for args, message in [
        (("--task", "tts"), "--language"),
        (("--task", "sing"), "neither continue nor tts"),
        (("--task", "tts", "--language", "de", "--window-frames", "9"), "not for --task tts"),
        (("--say", "something"), "for --task tts"),
    ]:
        done = recipe("run.sh", "--audio", "x", *args, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
