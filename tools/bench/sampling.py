"""Ways of drawing, compared by what a recogniser understands: phoneme error rates of the sentences
of a split, said by one model in every combination of the given settings.

    python tools/bench/sampling.py --exp-dir EXP --manifest-dir TOKENS \\
        --recognizer EXP/recognizer --temperature 0.7 1 --cfg-scale 1.5 2 3

Sentences of the validation split, so that the test split stays unseen; each setting says the same
ones, so that rates are compared sentence by sentence: beside each rate are its 95 % interval and
that of its difference from the first setting's, by the bootstrap over sentences.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rvqlm.cli import parse, run_main


@dataclass
class Args:
    exp_dir: str
    """The model that speaks."""
    manifest_dir: str
    """Token directory with text, of the sentences."""
    recognizer: str
    """The recogniser that listens."""
    split: str = "valid"
    """Whose sentences."""
    num: int = 24
    """How many of them."""
    seconds: float = 12.0
    """Longest sentence."""
    seed: int = 0
    """Of the draws."""
    temperature: tuple[float, ...] = (1.0,)
    top_k: tuple[int, ...] = (50,)
    top_p: tuple[float, ...] = (1.0,)
    cfg_scale: tuple[float, ...] = (3.0,)
    duration_temperature: tuple[float, ...] = (0.0,)
    steps: tuple[int, ...] = field(default_factory=tuple)
    """Of masked models."""
    score: tuple[str, ...] = field(default_factory=tuple)
    """Of masked models: confidence, random."""


AXES = ("temperature", "top_k", "top_p", "cfg_scale", "duration_temperature", "steps", "score")


def settings_of(args: Args) -> list[dict]:
    """Every combination; axes without values are left as they are."""
    given = {name: getattr(args, name) for name in AXES if getattr(args, name)}
    return [dict(zip(given, values)) for values in itertools.product(*given.values())]


def difference(errors: np.ndarray, first: np.ndarray, symbols: np.ndarray) -> tuple[float, float]:
    """95 % interval of how much higher a rate is than the first's, sentence by sentence."""
    drawn = np.random.default_rng(0).integers(len(symbols), size=(2000, len(symbols)))
    rates = (errors - first)[drawn].sum(1) / symbols[drawn].sum(1)
    return tuple(np.percentile(rates, [2.5, 97.5]).tolist())


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Args, "sampling.py", "Ways of drawing, by phoneme error rate.", argv)
    from rvqlm.codecs.registry import load_codec_like
    from rvqlm.generation.sampling import DemaskConfig, SamplingConfig, SpeechConfig
    from rvqlm.inference.conditions import ConditionArgs
    from rvqlm.inference.generate import OutputArgs, SampleRequest, generate
    from rvqlm.inference.model_args import ModelArgs
    from rvqlm.inference.prompts import PromptArgs, read_prompts
    from rvqlm.inference.recognize import recognize_samples
    from rvqlm.metrics.recognition import error_rate
    from rvqlm.runtime import tune_malloc

    tune_malloc()
    model, _, _, device = ModelArgs().load(args.exp_dir)
    listener, *_ = ModelArgs().load(args.recognizer)
    codec = load_codec_like(model.info, None, device)
    source = PromptArgs(
        manifest_dir=args.manifest_dir, split=args.split, num_prompts=args.num, prompt_seconds=0
    )
    frames = round(args.seconds * float(model.info.frame_rate))
    prompts = read_prompts(source, ConditionArgs(), model, codec, frames, args.seed)
    output = OutputArgs(seconds=args.seconds, min_seconds=0.5, seed=args.seed)

    def some(kind, setting: dict):
        return kind(**{k: v for k, v in setting.items() if k in kind.__dataclass_fields__})

    first = None
    print(f"{len(prompts)} sentences of {args.split}; difference from the first setting's rate")
    for setting in settings_of(args):
        request = SampleRequest(
            prompts, output, some(SamplingConfig, setting), some(DemaskConfig, setting)
        )
        request.speech = some(SpeechConfig, setting)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            samples = list(generate(model, codec, request, {}))
            took = time.perf_counter() - began
            wavs = [sample.write(Path(folder)) for sample in samples]
            heard = recognize_samples(wavs, listener, None, device)
        seconds = sum(sample.about["seconds"] for sample in samples)
        symbols = np.array([len(item.reference) for item in heard])
        errors = np.array([item.row(str, str)["errors"] for item in heard])
        first = errors if first is None else first
        rate = error_rate(errors, symbols)
        low, high = rate["interval"]
        words = "  ".join(f"{k.replace('_', '-')} {v}" for k, v in setting.items())
        least, most = difference(errors, first, symbols)
        print(
            f"{words}: {rate['error_rate']:.1%} ({low:.1%} to {high:.1%}), "
            f"{least:+.1%} to {most:+.1%}; {took / seconds:.2f} s a second of audio",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main, None, "sampling.py"))
