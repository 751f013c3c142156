"""An experiment and its tokens made by hand, and the report's page of it taken apart."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import soundfile

from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Codec
from rvqlm.reports.formatting import render_template
from rvqlm.reports.report import ReportArgs, collect

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


def build_report(*args, command=None, **kwargs) -> str:
    return render_template("report.html", **collect(ReportArgs(*args, **kwargs), command))


def bits(nats: list[float]) -> float:
    return sum(nats) / math.log(2) * 50


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
        if tag not in ("meta", "link", "img", "input", "line", "path"):
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


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def recognition(path: Path, rate: float, **more) -> None:
    path.parent.mkdir(exist_ok=True)
    values = {"error_rate": rate, "interval": [rate - 0.01, rate + 0.01], "items": 2,
              "identified": [1, 2], "chance": 0.9, "rows": [],
              "command": f"rvqlm recognize {path.stem}"} | more  # fmt: skip
    path.write_text(json.dumps(values))


def lacking(page: str) -> list[str]:
    """What a page says that it lacks, but for judges that are not installed here."""
    boxes = re.findall("Not on this page yet</b><ul><li>(.*?)</ul>", page, re.DOTALL)
    lines = [line.strip() for box in boxes for line in box.split("<li>")]
    return [line for line in lines if not line.startswith("Not judged by ")]
