#!/usr/bin/env python3
"""``rvqlm recognize``: whether speech says what it should, by a recogniser of codes.

    rvqlm recognize --recognizer exp/recognizer --samples exp/tts/samples
    rvqlm recognize --recognizer exp/recognizer --manifest-dir data/tokens --split test

The first transcribes samples of rvqlm generate that were given a text; the second real recordings,
which is what the first is to be compared with. A recogniser is trained with ``rvqlm trainer
--model-name recognizer``. Writes recognition.json beside the samples, EXP/recognition_SPLIT.json
for a split.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rvqlm.cli import command_line, parse, run_main
from rvqlm.errors import UserError
from rvqlm.inference.model_args import ModelArgs
from rvqlm.runtime import tune_malloc


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
        if self.num < 0:
            problems.append(f"--num {self.num}: at least 0")
        if problems:
            raise UserError("; ".join(problems))


def _run(argv: Sequence[str] | None) -> int:
    description = "Error rate of speech against the text that it should say."
    config = parse(RecognizeConfig, "rvqlm recognize", description, argv)
    config.check()
    tune_malloc()
    from rvqlm.files import atomic_write
    from rvqlm.frontends.text import TextFrontEnd
    from rvqlm.inference.recognize import find_samples, recognize_cuts, recognize_samples
    from rvqlm.metrics.recognition import summarize
    from rvqlm.models.recognizer import Recognizer

    model, path, state, device = config.model.load(config.recognizer)
    codec = config.codec or None
    if not isinstance(model, Recognizer):
        raise UserError(
            f"--recognizer {path}: this is a {model.name}; train a recogniser with rvqlm trainer "
            "--model-name recognizer"
        )
    if config.samples:
        wavs = find_samples(config.samples)
        out = wavs[0].parent / "recognition.json"
    else:
        suffix = "_audio" if config.through_audio else ""
        out = (path if path.is_dir() else path.parent) / f"recognition_{config.split}{suffix}.json"
    out = Path(config.out) if config.out else out
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: no folder {out.parent}; make it first")
    if config.samples:
        about = {"samples": list(config.samples)}
        found = recognize_samples(wavs, model, codec, device)
    else:
        about = {"manifest_dir": config.manifest_dir, "split": config.split}
        about["through_audio"] = config.through_audio
        found = recognize_cuts(
            config.manifest_dir, config.split, model, str(path), config.num,
            config.through_audio, codec, device,
        )  # fmt: skip
    front_end = TextFrontEnd.from_info(model.conditions["text"])
    rows = [item.row(front_end.decode) for item in found]
    for row in rows if config.samples else ():
        print(f"{row['name']}  {row['errors']} errors in {row['symbols']} symbols")
        print(f"  reference   {row['reference']}\n  recognized  {row['recognized']}")
    summary = summarize(found)
    print(describe(summary))
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


def describe(summary: dict) -> str:
    """Lines for all items."""
    of, interval = summary["symbols"], summary["interval"]
    lines = [
        f"error rate {summary['error_rate']:.1%}"
        + (f" (95 %: {interval[0]:.1%} to {interval[1]:.1%})" if interval else "")
        + f" of {of:,} symbols in {summary['items']:,} items: "
        f"{summary['substitutions'] / of:.1%} substitutions, "
        f"{summary['deletions'] / of:.1%} deletions, {summary['insertions'] / of:.1%} insertions"
    ]
    if summary["chance"] is not None:
        found, of = summary["identified"]
        lines.append(
            f"against the texts of other items, by chance: {summary['chance']:.1%}; nearer to its "
            f"own text than to any other's: {found} of {of} items"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "recognize")


if __name__ == "__main__":
    sys.exit(main())
