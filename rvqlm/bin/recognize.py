#!/usr/bin/env python3
"""``rvqlm recognize``: whether speech says what it should, by a recogniser of codes.

    rvqlm recognize --recognizer exp/recognizer --samples exp/tts/samples
    rvqlm recognize --recognizer exp/recognizer --manifest-dir data/tokens --split test

The first hears samples of rvqlm generate that were given a text; the second real recordings, which
is what the first is to be compared with. A recogniser is trained with ``rvqlm trainer --model-name
recognizer``. Writes recognition.json beside the samples, EXP/recognition_SPLIT.json for a split.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rvqlm.cli import command_line, parse, run_main
from rvqlm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from rvqlm.metrics.recognition import Recognized

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
    checkpoint: str = "best"
    """best, latest, or the path of a checkpoint file."""
    ema: bool = True
    """Averaged weights, where the training kept them."""
    codec: str = ""
    """The recogniser's codec, by name or directory; empty: the one named in the checkpoint."""
    out: str = ""
    """Where to write the result; empty: see above."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    num_threads: int = 0
    """CPU threads; 0: torch's choice."""

    def check(self) -> None:
        problems = []
        if bool(self.samples) == bool(self.manifest_dir):
            problems.append("give either --samples or --manifest-dir")
        if self.samples and self.through_audio:
            problems.append("--through-audio is for cuts of --manifest-dir; samples are audio")
        if self.samples and self.num:
            problems.append("--num is for cuts of --manifest-dir")
        if self.num < 0 or self.num_threads < 0:
            problems.append("--num and --num-threads: at least 0")
        if problems:
            raise UserError("; ".join(problems))


@dataclass
class Item:
    """Something to be recognised."""

    number: int
    """Place in the output."""
    name: str
    codes: Tensor
    """(T, K)"""
    reference: list[int]


def _run(argv: Sequence[str] | None) -> int:
    description = "Error rate of speech against the text that it should say."
    config = parse(RecognizeConfig, "rvqlm recognize", description, argv)
    config.check()

    from rvqlm import runtime

    runtime.tune_malloc()
    import torch

    from rvqlm.checkpoints.loading import find_checkpoint, load_model
    from rvqlm.files import atomic_write
    from rvqlm.frontends.text import TextFrontEnd
    from rvqlm.metrics.recognition import summarize
    from rvqlm.models.recognizer import Recognizer

    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    device = runtime.pick_device(config.device)
    path = find_checkpoint(config.recognizer, config.checkpoint)
    model, _, state = load_model(path, device=device, use_ema=config.ema)
    if not isinstance(model, Recognizer):
        raise UserError(
            f"--recognizer {path}: this is a {model.name}; train a recogniser with rvqlm trainer "
            "--model-name recognizer"
        )
    front_end = TextFrontEnd.from_info(model.conditions["text"])
    if config.samples:
        wavs, out = find_samples(config.samples)
        items = from_samples(wavs, config, model, front_end, device)
        about = {"samples": list(config.samples)}
    else:
        suffix = "_audio" if config.through_audio else ""
        out = (path if path.is_dir() else path.parent) / f"recognition_{config.split}{suffix}.json"
        items = from_tokens(config, model, str(path), device)
        about = {"manifest_dir": config.manifest_dir, "split": config.split}
        about["through_audio"] = config.through_audio
    out = Path(config.out) if config.out else out
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: no folder {out.parent}; make it first")
    found = recognize(model, items)
    rows = [item.row(front_end.decode) for item in found]
    if config.samples:
        print("\n".join(describe(row) for row in rows))
    summary = summarize(found)
    print(describe_all(summary))
    result = {
        **about,
        **summary,
        "recognizer": str(path),
        "step": int(state["step"]),
        "codec": model.info.to_dict(),
        "command": command_line("recognize", argv),
        "rows": rows,
    }
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    atomic_write(out, lambda p: p.write_text(text, encoding="utf-8"))
    print(f"wrote {out}")
    return 0


def recognize(model, items: Iterable[Item]) -> list[Recognized]:
    """Transcripts of `items`, those that follow each other in batches; in the order of their
    numbers."""
    import torch

    from rvqlm.metrics.recognition import Recognized

    found: list[tuple[int, Recognized]] = []
    batch: list[Item] = []
    most = BATCH_SECONDS * float(model.info.frame_rate)

    def finish() -> None:
        lengths = torch.tensor([len(item.codes) for item in batch])
        codes = torch.nn.utils.rnn.pad_sequence([i.codes for i in batch], batch_first=True)
        for item, heard in zip(batch, model.recognize(codes, lengths)):
            found.append((item.number, Recognized(item.name, item.reference, heard)))
        batch.clear()

    for item in items:
        longest = max(len(i.codes) for i in [*batch, item])
        if batch and (len(batch) + 1) * longest > most:
            finish()
        batch.append(item)
    if batch:
        finish()
    return [item for _, item in sorted(found, key=lambda pair: pair[0])]


# ------------------------------------------------------------------------------------- samples


def find_samples(given: Sequence[str]) -> tuple[list[Path], Path]:
    """(wav files, where their result goes) of a folder or of files.

    :raises UserError: nothing there, or files of several folders.
    """
    paths = [Path(g) for g in given]
    if len(paths) == 1 and paths[0].is_dir():
        wavs = sorted(paths[0].glob("*.wav"))
        if not wavs:
            raise UserError(f"--samples {paths[0]}: no wav files there; run rvqlm generate first")
        told = [w for w in wavs if _conditions(w)]
        if not told:
            raise UserError(
                f"--samples {paths[0]}: no sample there was given a text; generate with --text"
            )
        if len(told) < len(wavs):
            print(f"{len(wavs) - len(told)} samples were given no text: left out", file=sys.stderr)
        return told, paths[0] / "recognition.json"
    for path in paths:
        if not path.is_file():
            raise UserError(f"--samples {path}: no such file; give wav files, or one folder")
        if not _conditions(path):
            raise UserError(
                f"--samples {path}: no text in {path.with_suffix('.json')}; give samples that "
                "rvqlm generate made of a --text"
            )
    folders = {path.parent for path in paths}
    if len(folders) > 1:
        raise UserError(f"--samples: files of {len(folders)} folders; give those of one")
    return paths, folders.pop() / "recognition.json"


def _conditions(wav: Path) -> dict:
    """What the JSON beside a sample says of its text; empty where it has none."""
    path = wav.with_suffix(".json")
    try:
        given = json.loads(path.read_text(encoding="utf-8")).get("conditions") or {}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as e:
        raise UserError(f"{path}: not a description of a sample ({e}); generate it again") from None
    return {k: given[k] for k in ("text", "phonemes") if k in given}


def from_samples(wavs: list[Path], config, model, front_end, device) -> Iterator[Item]:
    """Samples, encoded whole by the recogniser's codec."""
    import torch

    from rvqlm.audio.load import load_file
    from rvqlm.codecs.chunking import encode_whole
    from rvqlm.codecs.registry import load_codec_like

    references = [_reference(wav, front_end) for wav in wavs]
    codec = load_codec_like(model.info, config.codec or None, device)
    for number, (wav, reference) in enumerate(zip(wavs, references)):
        audio = load_file(str(wav), codec.info.sampling_rate, codec.info.channels)
        codes = encode_whole(codec, torch.from_numpy(audio)).codes
        yield Item(number, str(wav), codes, reference)


def _reference(wav: Path, front_end) -> list[int]:
    given = _conditions(wav)
    text = given.get("phonemes", given.get("text"))
    try:
        if "phonemes" in given:  # what the model was given is known, as of the cuts of a manifest
            ids = front_end.encode_phonemes(text)
        else:
            ids = front_end.encode(text)
    except UserError as e:
        raise UserError(f"{wav}: {e}") from None
    if not len(ids):
        raise UserError(f"{wav}: nothing to say in its text {text!r}; leave this sample out")
    return ids.tolist()


# --------------------------------------------------------------------------------------- tokens


def from_tokens(config: RecognizeConfig, model, checkpoint: str, device) -> Iterator[Item]:
    """Cuts with text by length, from their stored codes or through audio."""
    import numpy as np
    import torch
    from tqdm import tqdm

    from rvqlm.data.conditions import ConditionSet
    from rvqlm.data.index import TokenDataset

    info = model.info
    stored = TokenDataset.open(config.manifest_dir, config.split)
    dataset = stored.first_levels(info.num_codebooks)
    info.require_same(dataset.info, checkpoint, config.manifest_dir)
    texts = ConditionSet.open(dataset, ["text"])
    text = model.conditions["text"]
    text.require_same(texts.infos["text"], checkpoint, config.manifest_dir)
    count = min(config.num or len(dataset), len(dataset))
    names = dict(zip(range(count), dataset.ids()))
    frames = np.asarray(dataset.frames[:count]).astype(np.int64)
    order = np.argsort(frames, kind="stable")
    said = texts.read(order, np.zeros(count, np.int64), frames[order])["text"]
    references = {
        row: values[:n, 0].tolist()
        for row, values, n in zip(order.tolist(), said.values, said.lengths.tolist())
        if n
    }
    if not references:
        raise UserError(f"{config.manifest_dir}: no cut of split {config.split!r} has a text")
    if len(references) < count:
        print(f"{count - len(references)} cuts have no text: left out", file=sys.stderr)
    again = _round_trip(config, model, stored, names, device) if config.through_audio else None
    rows = [row for row in order.tolist() if row in references]
    for row in tqdm(rows, "recognize", unit=" cuts", leave=False, disable=None):
        if again is None:
            codes = torch.from_numpy(dataset.read(row).astype(np.int64))
        else:
            codes = again(row)
        yield Item(row, names[row], codes, references[row])


def _round_trip(config: RecognizeConfig, model, stored, names: dict[int, str], device):
    """A function: row of the index -> its codes after decoding (of all levels) and encoding."""
    import torch

    from rvqlm.codecs.chunking import decode_long, encode_whole
    from rvqlm.codecs.registry import load_codec_like
    from rvqlm.data.scales import stored_scales

    encoder = decoder = load_codec_like(model.info, config.codec or None, device)
    if stored.info.num_codebooks != model.info.num_codebooks:
        decoder = load_codec_like(stored.info, config.codec or None, device)
    ids = set(names.values())
    scales = stored_scales(config.manifest_dir, config.split, stored.info, ids)

    def again(row: int) -> Tensor:
        codes = torch.from_numpy(stored.read(row)).to(device)
        audio = decode_long(decoder, codes, scales=scales.get(names[row]))
        return encode_whole(encoder, audio).codes

    return again


# --------------------------------------------------------------------------------------- output


def describe(row: dict) -> str:
    """Lines for one sample."""
    return (
        f"{row['name']}  {row['errors']} errors in {row['symbols']} symbols\n"
        f"  said   {row['reference']}\n"
        f"  heard  {row['recognized']}"
    )


def describe_all(summary: dict) -> str:
    """Lines for all items."""
    of = summary["symbols"]
    interval, chance = summary["interval"], summary["chance"]
    words = f"error rate {summary['error_rate']:.1%}"
    if interval is not None:
        words += f" (95 %: {interval[0]:.1%} to {interval[1]:.1%})"
    words += (
        f" of {of:,} symbols in {summary['items']:,} items: "
        f"{summary['substitutions'] / of:.1%} changed, {summary['deletions'] / of:.1%} left out, "
        f"{summary['insertions'] / of:.1%} put in"
    )
    if chance is None:
        return words + "\nagainst other texts: none to compare with, all items say the same"
    found, of = summary["identified"]
    return (
        f"{words}\nagainst the texts of other items, drawn by chance: {chance:.1%}; nearer to its "
        f"own text than to any other's: {found} of {of} items"
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "recognize")


if __name__ == "__main__":
    sys.exit(main())
