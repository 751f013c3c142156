"""egs/mini/tts.sh from speech synthesis to the recogniser's verdict, on nine minutes of speech."""

import json
from pathlib import Path

from test_mini_run import run


def test_text_to_speech_and_back(tmp_path):
    words = "--quick --hours 0.15 --train-minutes 0.1 --listen-minutes 0.1 --sentences 2 --judge 0"
    args = f"{words} --data-dir data --exp-dir exp --stage 1".split()
    output = run(*args, cwd=tmp_path, script="tts.sh")
    verdict = json.loads((tmp_path / "exp/samples/recognition.json").read_text())
    samples = sorted(p.stem for p in (tmp_path / "exp/samples").glob("*.wav"))
    assert len(samples) == 3  # two sentences of the test split, one of our own
    assert sorted(Path(row["name"]).stem for row in verdict["rows"]) == samples
    own = json.loads((tmp_path / "exp/samples/conditioned-00.json").read_text())
    assert own["conditions"]["text"].startswith("The old captain")
    assert own["kind"] == "conditioned" and own["passes"] > 1
    assert "error rate" in output
    assert not (tmp_path / "exp/check").exists() and "Judge" not in output
    page = (tmp_path / "exp/report.html").read_text(encoding="utf-8")
    assert "The old captain" in page
    again = run(*args, "--stop-stage", "4", cwd=tmp_path, script="tts.sh")
    assert again.count("training is finished") == 2
