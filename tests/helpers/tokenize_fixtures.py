"""A toy codec and a toy corpus for the tests of `rvqlm tokenize`, and ways to stop it."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import time

import numpy as np
import soundfile
import torch

from rvqlm.audio.prepare import AudioConfig
from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Codec
from rvqlm.tokenizing import encode as token_encode
from rvqlm.tokenizing import tokenize
from rvqlm.tokenizing.config import CodecConfig, InputConfig, TokenizeConfig, WorkConfig

RATE, HOP = 8000, 40


class Peaks(Codec):
    """Two codes a frame, from the frame's largest and smallest sample; takes a moment."""

    context_frames = 0
    delay = 0.0

    def __init__(self, fingerprint="f" * 16, num_codebooks=2, channels=1):
        super().__init__(CodecInfo("peaks", fingerprint, RATE, HOP, num_codebooks, 256, channels))

    def encode(self, audio, lengths=None):
        time.sleep(self.delay)
        audio, frames = self.pad_to_hop(audio, lengths)
        blocks = audio[:, 0].unflatten(1, (-1, HOP))
        codes = torch.stack([blocks.amax(2), -blocks.amin(2)], 2)
        codes = (codes.clamp(0, 1) * 255).round().long()
        return codes[..., : self.info.num_codebooks], frames

    def decode(self, codes):
        raise NotImplementedError


def make_audio(folder, count=24, seed=0, rate=RATE):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        samples = int(rng.integers(1, 40 * HOP))
        audio = rng.uniform(-1, 1, samples).astype(np.float32) * rng.uniform(0.1, 1)
        path = folder / f"speaker{i % 3}" / f"{i:03}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, audio, rate, subtype="FLOAT")
    return folder


def config(corpus, out, **flags):
    """A `TokenizeConfig` from flags of all groups."""
    groups = {"codec": {}, "audio": {}, "work": {"jobs": 1}}
    kinds = {"codec": CodecConfig, "audio": AudioConfig, "work": WorkConfig}
    for flag, value in flags.items():
        group = next(g for g, kind in kinds.items() if flag in kind.__dataclass_fields__)
        groups[group][flag] = value
    inputs = tuple(map(str, corpus)) if isinstance(corpus, (list, tuple)) else str(corpus)
    built = {g: kinds[g](**values) for g, values in groups.items()}
    return TokenizeConfig(InputConfig(inputs, str(out)), **built)


def contents(folder):
    """Every file of a token directory by name, gunzipped, with its own path taken out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            data = gzip.decompress(data) if path.suffix == ".gz" else data
            found[str(path.relative_to(folder))] = data.replace(str(folder).encode(), b"OUT")
    return found


def lines(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as file:
        return [json.loads(line) for line in file]


def spoil(corpus):
    """Seven files that cannot be used, between the good ones."""
    good = corpus / "speaker1" / "001.wav"
    (corpus / "speaker0" / "a_empty.wav").touch()
    (corpus / "speaker0" / "b_text.wav").write_text("no audio at all")
    soundfile.write(corpus / "speaker1" / "c_zero.wav", np.zeros(0), RATE)
    nan = np.zeros(100, np.float32)
    nan[50] = np.nan
    soundfile.write(corpus / "speaker2" / "d_nan.wav", nan, RATE, subtype="FLOAT")
    soundfile.write(corpus / "speaker2" / "e_stereo.wav", np.zeros((100, 2)), RATE)
    (corpus / "speaker2" / "f_header.wav").write_bytes(good.read_bytes()[:20])
    (corpus / "speaker2" / "g_gone.wav").symlink_to("nowhere.wav")


class Stop(BaseException):
    pass


def interrupt_after(monkeypatch, items):
    """Make the next encoding raise after some items, once."""
    original, left = token_encode.encode_stream, [items]

    def encode(*args):
        left[0] -= 1
        if left[0] < 0:
            monkeypatch.setattr(token_encode, "encode_stream", original)
            raise Stop
        return original(*args)

    monkeypatch.setattr(token_encode, "encode_stream", encode)


def in_a_process(cfg, **environment):
    """`tokenize` in a process of its own that can be killed."""

    def body():
        os.environ.update(environment)
        tokenize.tokenize(cfg)

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    return process
