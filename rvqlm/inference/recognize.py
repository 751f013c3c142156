"""Transcripts of samples and of cuts, by a recogniser of codes, beside what they should say."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rvqlm.audio.load import load_file
from rvqlm.cli import bar, counted
from rvqlm.codecs.chunking import decode_long, encode_whole
from rvqlm.codecs.registry import load_codec_like
from rvqlm.data.conditions import ConditionSet
from rvqlm.data.index import TokenDataset
from rvqlm.data.mapped import column_path
from rvqlm.data.plan import Items
from rvqlm.data.ragged import Ragged
from rvqlm.data.scales import stored_scales
from rvqlm.errors import UserError
from rvqlm.frontends.pauses import words_of
from rvqlm.frontends.text import TextFrontEnd
from rvqlm.inference.files import read_sample
from rvqlm.inference.model_args import ModelArgs
from rvqlm.metrics.bigram import Bigram
from rvqlm.metrics.recognition import Recognized
from rvqlm.models.recognizer import Recognizer

BATCH_SECONDS = 120.0


@dataclass
class RecognizeConfig:
    """Flags of `rvqlm recognize`."""

    recognizer: str
    """Experiment of a recogniser, or a checkpoint file."""
    samples: tuple[str, ...] = ()
    """A folder of rvqlm generate, or wav files out of one. The text to compare with is in the JSON
    beside each; with a prompt, it is that of the prompt and the rest."""
    manifest_dir: str = ""
    """Or a token directory with text (rvqlm text), of the recogniser's codec and table."""
    split: str = "test"
    """Split of the token directory."""
    num: int = 0
    """Only the first so many cuts; 0: all."""
    through_audio: bool = False
    """Decode the cuts and encode them again, as happens to samples."""
    bigram: float = 0.0
    """Weight of which symbols follow each other in the texts to train on, beside what is heard.
    It repairs what was heard, and so is for writing down, not for judging; 0: heard alone."""
    bigram_from: str = ""
    """Token directory with these texts; empty: --manifest-dir."""
    codec: str = ""
    """The recogniser's codec, by name or directory; empty: the one named in the checkpoint."""
    out: str = ""
    """Where to write the result; empty: see above."""
    model: ModelArgs = field(default_factory=ModelArgs)

    def check(self) -> None:
        problems = []
        if bool(self.samples) == bool(self.manifest_dir):
            problems.append("give either --samples or --manifest-dir")
        if self.samples and self.through_audio:
            problems.append("--through-audio is for cuts of --manifest-dir; samples are audio")
        if self.samples and self.num:
            problems.append("--num is for cuts of --manifest-dir")
        if not 0 <= self.bigram < inf:
            problems.append(f"--bigram {self.bigram}: at least 0")
        if self.bigram and self.samples and not self.bigram_from:
            problems.append("--bigram with --samples: give --bigram-from, a token directory")
        if self.bigram_from and not self.bigram:
            problems.append("--bigram-from is for --bigram; give its weight, such as 0.5")
        if self.num < 0:
            problems.append(f"--num {self.num}: at least 0")
        if problems:
            raise UserError("; ".join(problems))


def read_bigram(
    config: RecognizeConfig, model: Recognizer, checkpoint: str
) -> tuple[Bigram, dict] | tuple[None, None]:
    """The bigram of the texts to train on, and what to say of it; None for each without one.

    :param checkpoint: path of the model, for messages.
    :raises UserError: no such texts, or of another table than the recogniser's.
    """
    if not config.bigram:
        return None, None
    directory, split = config.bigram_from or config.manifest_dir, "train"
    dataset = TokenDataset.open(directory, split)
    info = ConditionSet.open(dataset, ["text"]).infos["text"]
    model.conditions["text"].require_same(info, checkpoint, directory)
    column = Ragged.open(column_path(dataset.directory, "text", split), dataset.fingerprint)
    rows = np.flatnonzero(column.lengths).tolist()
    if not rows:
        raise UserError(f"{directory}: no cut of split {split!r} has a text to count a bigram of")
    bigram = Bigram.of([column.read(r)[:, 0] for r in rows], model.num_symbols, config.bigram)
    about = {"weight": config.bigram, "from": directory, "split": split, "texts": len(rows)}
    return bigram, about


class _Item(NamedTuple):
    name: str
    codes: Tensor
    """(T, K)"""
    reference: list[int]


def in_batches(items: Iterable, size: Callable[[Any], int], most: float) -> Iterator[list]:
    """Neighbours together as long as all of them, each padded to the longest, are `most` frames.

    :param size: frames of an item.
    """
    batch: list = []
    longest = 0
    for item in items:
        longest = max(longest, size(item))
        if batch and (len(batch) + 1) * longest > most:
            yield batch
            batch, longest = [], size(item)
        batch.append(item)
    if batch:
        yield batch


def _recognize(
    model: Recognizer, items: Iterable[_Item], bigram: Bigram | None
) -> Iterator[Recognized]:
    """Transcripts of `items` in their order, in batches of `BATCH_SECONDS` with their padding."""
    most_frames = BATCH_SECONDS * float(model.info.frame_rate)
    for batch in in_batches(items, lambda item: len(item.codes), most_frames):
        yield from _recognize_batch(model, batch, bigram)


def _recognize_batch(
    model: Recognizer, batch: list[_Item], bigram: Bigram | None
) -> Iterator[Recognized]:
    lengths = torch.tensor([len(item.codes) for item in batch])
    codes = torch.nn.utils.rnn.pad_sequence([i.codes for i in batch], batch_first=True)
    for item, symbols in zip(batch, model.recognize(codes, lengths, bigram)):
        yield Recognized(item.name, item.reference, symbols)


# ------------------------------------------------------------------------------------- samples


def find_samples(given: Sequence[str]) -> list[Path]:
    """The samples of a folder that were given a text, or wav files.

    :raises UserError: nothing there, or a file that was given no text.
    """
    paths = [Path(g) for g in given]
    if len(paths) == 1 and paths[0].is_dir():
        wavs = sorted(paths[0].glob("*.wav"))
        told = [wav for wav in wavs if _text_of(wav)]
        if not told:
            raise UserError(
                f"--samples {paths[0]}: {len(wavs)} wav files there, none of which was given a "
                "text; run rvqlm generate with --text first"
            )
        if left_out := len(wavs) - len(told):
            print(f"left out: {counted(left_out, 'sample')} without a text", file=sys.stderr)
        return told
    for path in paths:
        if not path.is_file():
            raise UserError(f"--samples {path}: no such file; give wav files, or one folder")
        if not _text_of(path):
            raise UserError(
                f"--samples {path}: no text in {path.with_suffix('.json')}; give samples that "
                "rvqlm generate made of a --text"
            )
    return paths


def recognize_samples(
    wavs: list[Path],
    model: Recognizer,
    codec: str | None,
    device: torch.device,
    bigram: Bigram | None = None,
) -> list[Recognized]:
    """Transcripts of samples, encoded whole by the recogniser's codec.

    :param codec: its name or directory; None: the one named in the checkpoint.
    :param bigram: to decode with.
    :raises UserError: a text that the recogniser's symbols cannot write.
    """
    front_end = TextFrontEnd.from_info(model.conditions["text"])
    references = [reference_of(wav, front_end) for wav in wavs]
    loaded = load_codec_like(model.info, codec, device)

    def items() -> Iterator[_Item]:
        for wav, reference in zip(wavs, references):
            notes: list[str] = []
            info = loaded.info
            audio = load_file(str(wav), info.sampling_rate, info.channels, notes=notes)
            if notes:
                print(f"{wav}: {'; '.join(notes)}", file=sys.stderr)
            codes = encode_whole(loaded, torch.from_numpy(audio)).codes
            yield _Item(str(wav), codes, reference)

    return list(_recognize(model, items(), bigram))


def reference_of(wav: Path, front_end: TextFrontEnd) -> list[int]:
    """Symbols of what a sample was to say; of phonemes as they are, where it was given these."""
    given = _text_of(wav)
    text = given.get("phonemes", given.get("text"))
    try:
        # where phonemes are known, as of the cuts of a manifest, they are what the model was given
        if "phonemes" in given:
            ids = front_end.encode_phonemes(text)
        else:
            spoken = front_end.settings.type == "phonemes"
            language = given.get("language") if spoken else None
            ids = front_end.encode(words_of(text), language, inline=True)
    except UserError as e:
        raise UserError(f"{wav}: {e}") from None
    if not len(ids):
        raise UserError(f"{wav}: nothing to say in its text {text!r}; leave this sample out")
    return ids.tolist()


def _text_of(wav: Path) -> dict:
    """What the JSON beside a sample says of its text; empty where it has none."""
    conditions = (read_sample(wav) or {}).get("conditions") or {}
    return {k: conditions[k] for k in ("text", "phonemes", "language") if k in conditions}


# ---------------------------------------------------------------------------------------- cuts


def recognize_cuts(
    config: RecognizeConfig,
    model: Recognizer,
    checkpoint: str,
    device: torch.device,
    bigram: Bigram | None = None,
) -> list[Recognized]:
    """Transcripts of the cuts of a split that have a text, from their stored codes.

    :param checkpoint: path of the model, for messages.
    :param bigram: to decode with.
    :raises UserError: tokens or text of another kind than the recogniser's, or no text.
    """
    manifest_dir, split, through_audio = config.manifest_dir, config.split, config.through_audio
    stored = TokenDataset.open(manifest_dir, split)
    dataset = stored.first_levels(model.info.num_codebooks)
    model.info.require_same(dataset.info, checkpoint, manifest_dir)
    texts = ConditionSet.open(dataset, ["text"])
    model.conditions["text"].require_same(texts.infos["text"], checkpoint, manifest_dir)
    names = list(islice(dataset.ids(), config.num or None))
    count = len(names)
    frames = np.asarray(dataset.frames[:count]).astype(np.int64)
    order = np.argsort(frames, kind="stable")  # by length, for batches with little padding
    said = texts.read(Items.whole(order, frames))["text"]
    references = {
        row: values[:n, 0].tolist()
        for row, values, n in zip(order.tolist(), said.values, said.lengths.tolist())
        if n
    }
    if not references:
        raise UserError(f"{manifest_dir}: no cut of split {split!r} has a text")
    if len(references) < count:
        left_out = counted(count - len(references), "cut")
        print(f"left out: {left_out} without a text", file=sys.stderr)
    if through_audio:
        encoder, decoder = (
            load_codec_like(i, config.codec or None, device) for i in (model.info, stored.info)
        )
        scales = stored_scales(manifest_dir, split, stored.info, set(names))

    def read(row: int) -> Tensor:
        if not through_audio:
            return torch.from_numpy(dataset.read(row).astype(np.int64))
        codes = torch.from_numpy(stored.read(row)).to(device)  # all levels, as they were encoded
        audio = decode_long(decoder, codes, scales=scales.get(names[row]))
        return encode_whole(encoder, audio).codes

    rows = bar(references, "recognize")
    found = _recognize(model, (_Item(names[r], read(r), references[r]) for r in rows), bigram)
    return [item for _, item in sorted(zip(references, found))]
