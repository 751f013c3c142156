"""`SampleWriter`: what a model sounds like while it is trained.

EXP/samples/reference has recordings of the validation split and what the codec makes of them,
EXP/samples/step-N what the model makes: continuations of the same recordings and samples from
nothing (or from the conditions alone). All of it is in TensorBoard too. A failure costs a line on
stderr; the training, its random numbers and the model's mode stay as they were.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch

from rvqlm.data.index import TokenDataset
from rvqlm.errors import UserError
from rvqlm.generation.sampling import SamplingConfig
from rvqlm.inference.conditions import Given, pad
from rvqlm.inference.files import write_sample
from rvqlm.inference.prompts import Prompt, conditions_of, from_tokens, unprompted
from rvqlm.metrics.audio_metrics import repetition_ratio, silence_ratio
from rvqlm.metrics.losses import count_codes
from rvqlm.training.config_log import LogConfig
from rvqlm.training.logger import MetricsLog

_COUNTED_CUTS = 500
"""Cuts of the split whose codes the histograms are compared with."""


class SampleWriter:
    """Makes samples of a model for the ears and for TensorBoard.

    Parameters
    ----------
    config: the flags that begin with ``sample_``.
    dataset: the validation split; its directory and recordings are what is continued.
    heard_seconds: of another recording of the speaker, for models that hear one.
    log: where sounds, histograms and the line of kind ``sample`` go.
    """

    def __init__(
        self,
        config: LogConfig,
        dataset: TokenDataset,
        heard_seconds: float,
        exp_dir: str | Path,
        log: MetricsLog,
        seed: int,
    ):
        self.config, self.dataset, self.heard_seconds = config, dataset, heard_seconds
        self.info, self.log, self.seed = dataset.info, log, seed
        self.folder = Path(exp_dir) / "samples"
        self._codec = None
        self._said: set[str] = set()
        self._counts: np.ndarray | None = None

    def write(self, model, step: int, epoch: int = 0, beat=lambda: None) -> list[Path]:
        """Make the samples of a step; the files, none if that failed.

        :param model: with the weights to be heard.
        :param beat: called between sounds, for whoever waits for signs of life.
        """
        devices = [next(model.parameters()).device]
        devices = devices if devices[0].type == "cuda" else []
        try:
            with torch.random.fork_rng(devices), torch.no_grad():
                return self._write(model, step, epoch, beat)
        except Exception as e:  # whatever went wrong, training is worth more
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
            # what a model or its data cannot do does not change within a training
            if not isinstance(e, UserError) or reason not in self._said:
                print(f"no samples at step {step}: {reason}", file=sys.stderr, flush=True)
            self._said.add(reason)
            return []

    def _write(self, model, step: int, epoch: int, beat) -> list[Path]:
        if not model.generates:
            raise UserError(f"a {model.name} predicts no codes")
        began = time.monotonic()
        codec = self._load_codec(model)
        starts = self._starts(model)
        paths, made = [], []
        groups = [[s for s in starts if len(s.codes)], [s for s in starts if not len(s.codes)]]
        for group in filter(None, groups):
            beat()
            generation = self._generate(model, group)
            # folders are made once there is something to put there
            if not (self.folder / "reference").is_dir():
                beat()
                self._write_reference([s.source for s in starts if s.source], step)
            folder = self.folder / f"step-{step:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            for start, item, stop in zip(group, generation.items(), generation.stop):
                beat()
                paths.append(self._write_one(codec, folder, start, item, stop, step))
                made.append(item[len(start.codes) :].cpu().numpy())
        values = self._compare(made, step)
        self.log.write("sample", step, epoch, values | {"seconds": time.monotonic() - began})
        return paths

    def _load_codec(self, model):
        from rvqlm.codecs.registry import load_codec_like

        if self._codec is None:
            on = "cpu" if self.config.sample_device == "cpu" else next(model.parameters()).device
            self._codec = load_codec_like(self.info, None, torch.device(on))
        return self._codec

    def _starts(self, model) -> list[Prompt]:
        """The same recordings and the same draws every time, so that steps can be compared."""
        c, rate = self.config, float(self.info.frame_rate)
        frames = max(1, round(c.sample_prompt_seconds * rate))
        where = str(self.dataset.directory), self.dataset.split, c.sample_count
        starts = from_tokens(*where, frames, model, self.seed, self.heard_seconds)
        if not model.conditions:
            return starts + unprompted(c.sample_count, self.info)
        rows = np.random.default_rng(self.seed).permutation(len(self.dataset))[: c.sample_count]
        given = conditions_of(self.dataset, rows.tolist(), model, self.seed, self.heard_seconds)
        empty = torch.empty(0, self.info.num_codebooks, dtype=torch.int64)
        return starts + [
            Prompt(empty, f"conditioned-{i:02d}", given=Given(g.values, g.about))
            for i, g in enumerate(given)
        ]

    def _generate(self, model, group: list[Prompt]):
        c, rate = self.config, float(self.info.frame_rate)
        lengths = torch.tensor([len(p.codes) for p in group])
        total = max(int(lengths.max()) + 1, round(c.sample_seconds * rate))
        return model.generate(
            torch.nn.utils.rnn.pad_sequence([p.codes for p in group], batch_first=True),
            lengths,
            min_frames=lengths + 1,  # an end at once would be nothing to hear
            limits=torch.full_like(lengths, total),
            sampling=SamplingConfig(c.sample_temperature, c.sample_top_k),
            conditions=pad([p.given for p in group], model.conditions),
            seed=self.seed,
        )

    def _write_one(self, codec, folder: Path, start: Prompt, item, stop: str, step: int) -> Path:
        from rvqlm.codecs.chunking import decode_long

        info, heard = self.info, len(start.codes)
        scales = codec.scales_for(len(item), start.scales)
        audio = decode_long(codec, item.to(codec.device), scales=scales).cpu()  # (C, S)
        about = {
            "kind": start.kind,
            "step": step,
            "prompt": start.source,
            "prompt_seconds": heard / float(info.frame_rate),
            "conditions": start.given.about,
            "seconds": len(item) / float(info.frame_rate),
            "stop": stop,
            "temperature": self.config.sample_temperature,
            "top_k": self.config.sample_top_k,
            "seed": self.seed,
            "silence_ratio": silence_ratio(audio[:, info.num_samples(heard) :], info.sampling_rate),
            "repetition_ratio": repetition_ratio(item[heard:]),
        }
        self.log.audio(start.name, step, audio.mean(0), info.sampling_rate)
        return write_sample(folder / f"{start.name}.wav", audio, info.sampling_rate, about)

    def _write_reference(self, names: list[str], step: int) -> None:
        """Recordings and what the codec makes of them; without them the rest is still made."""
        (self.folder / "reference").mkdir(parents=True)
        try:
            self._write_recordings(names, step)
        except Exception as e:
            print(f"samples: no recordings to compare with: {e}", file=sys.stderr, flush=True)

    def _write_recordings(self, names: list[str], step: int) -> None:
        from rvqlm.reports.clips import held_out

        directory, split = self.dataset.directory, self.dataset.split
        seconds = self.config.sample_seconds
        stored = TokenDataset.open(directory, split).info  # all levels, as they were encoded
        shown, remarks = held_out(directory, split, stored, names, len(names), seconds)
        for remark in remarks:
            print(f"samples: {remark}", file=sys.stderr)
        for recording in shown:
            for clip in recording.clips:
                name = f"{clip.kind}-{recording.id.replace('/', '_')}"
                audio = torch.from_numpy(np.ascontiguousarray(clip.audio))
                about = {"kind": clip.kind, "id": recording.id, "text": recording.text}
                path = self.folder / "reference" / f"{name}.wav"
                write_sample(path, audio, clip.sampling_rate, about)
                self.log.audio(name, step, audio.mean(0), clip.sampling_rate)

    def _compare(self, made: list[np.ndarray], step: int) -> dict:
        """Histograms of the codes that were made, and their divergence from the data's; beside it
        that of as many codes of recordings, which is about what a perfect model comes to."""
        K, V = self.info.num_codebooks, self.info.codebook_size
        rows = np.random.default_rng(self.seed).permutation(len(self.dataset))[:_COUNTED_CUTS]
        if self._counts is None:
            self._counts = count_codes((self.dataset.read(row) for row in rows), self.info)
        counts = count_codes(made, self.info)
        few, left = [], sum(map(len, made))
        longest = max(map(len, made))
        for row in rows:
            few.append(self.dataset.read(row)[: min(left, longest)])
            left -= len(few[-1])
            if not left:
                break
        some = count_codes(few, self.info)
        codes = np.concatenate(made).reshape(-1, K)
        for level in range(K):
            self.log.histogram(f"codes/level_{level}", step, codes[:, level], bins=min(V, 256))
        return {
            "kl_from_data": _divergence(counts, self._counts),
            "kl_of_recordings": _divergence(some, self._counts - some),
            "codes_used": [int(n) for n in (counts > 0).sum(1)],
            "frames": len(codes),
        }


def _divergence(counts: np.ndarray, others: np.ndarray) -> list[float]:
    """KL(counts || others) in nats of each level, of counts (K, V) with one added everywhere."""
    p, q = ((c + 1.0) / (c + 1.0).sum(1, keepdims=True) for c in (counts, others))
    return (p * np.log(p / q)).sum(1).tolist()
