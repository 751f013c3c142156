"""`SampleWriter`: what a model sounds like while it is trained.

EXP/samples/reference has recordings of the validation split and what the codec makes of them,
EXP/samples/step-N what the model makes: continuations of the same recordings, and samples that are
unprompted (or made from the conditions of recordings alone). All of it is in TensorBoard too. A
failure costs a line on stderr; the training, its random numbers and the model's mode stay as they
were.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from rvqlm.data.index import TokenDataset
from rvqlm.errors import UserError
from rvqlm.exchange.names import Names, flat_name
from rvqlm.generation.sampling import SamplingConfig
from rvqlm.inference.conditions import ConditionArgs
from rvqlm.inference.files import write_sample
from rvqlm.inference.generate import OutputArgs, SampleRequest, generate
from rvqlm.inference.held_out import HeldOutSplit
from rvqlm.inference.prompts import PromptArgs, read_prompts
from rvqlm.metrics.code_use import divergence
from rvqlm.metrics.losses import count_codes
from rvqlm.training.config import LogConfig
from rvqlm.training.logger import MetricsLog

_COUNTED_CUTS = 500
"""Cuts of the split whose codes the histograms are compared with."""


class SampleWriter:
    """Makes samples of a model to listen to, and for TensorBoard.

    Parameters
    ----------
    config: the flags that begin with ``sample_``.
    dataset: the validation split; its directory and recordings are what is continued.
    voice_seconds: of another recording of the speaker, for models that are given one.
    log: where sounds, histograms and the line of kind ``sample`` go.
    """

    def __init__(
        self,
        config: LogConfig,
        dataset: TokenDataset,
        voice_seconds: float,
        exp_dir: str | Path,
        log: MetricsLog,
        seed: int,
    ):
        self.config, self.dataset = config, dataset
        self.conditions = ConditionArgs(voice_seconds=voice_seconds)
        self.info, self.log, self.seed = dataset.info, log, seed
        self.folder = Path(exp_dir) / "samples"
        self._codec = None
        self._reported: set[str] = set()
        self._counts: np.ndarray | None = None

    def write(self, model, step: int, epoch: int = 0, beat=lambda: None) -> list[Path]:
        """Make the samples of a step; the files, none if that failed.

        :param model: with the weights to sample from.
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
            if not isinstance(e, UserError) or reason not in self._reported:
                print(f"no samples at step {step}: {reason}", file=sys.stderr, flush=True)
            self._reported.add(reason)
            return []

    def _write(self, model, step: int, epoch: int, beat) -> list[Path]:
        if not model.generates:
            raise UserError(f"a {model.name} predicts no codes")
        began = time.monotonic()
        codec = self._load_codec(model)
        c, folder = self.config, self.folder / f"step-{step:08d}"
        about = {"model": model.name, "step": step}
        about |= {"temperature": c.sample_temperature, "top_k": c.sample_top_k}
        paths, codes = [], []
        requests = self._requests(model, codec)
        for request in requests:
            beat()
            for sample in generate(model, codec, request, about):
                beat()
                # folders are made once there is something to put there
                if not (self.folder / "reference").is_dir():
                    self._write_reference([p.source for p in requests[0].prompts], step)
                    beat()
                folder.mkdir(parents=True, exist_ok=True)
                paths.append(sample.write(folder))
                self.log.audio(sample.name, step, sample.audio.mean(0), sample.sampling_rate)
                codes.append(sample.codes[sample.prompt_frames :].cpu().numpy())
        values = self._compare(codes, step)
        self.log.write("sample", step, epoch, values | {"seconds": time.monotonic() - began})
        return paths

    def _load_codec(self, model):
        from rvqlm.codecs.registry import load_codec_like

        if self._codec is None:
            on = "cpu" if self.config.sample_device == "cpu" else next(model.parameters()).device
            self._codec = load_codec_like(self.info, None, torch.device(on))
        return self._codec

    def _requests(self, model, codec) -> list[SampleRequest]:
        """Continuations, and samples without a beginning: the same recordings and the same draws
        every time, so that steps can be compared."""
        c, rate = self.config, float(self.info.frame_rate)
        frames = max(1, round(c.sample_prompt_seconds * rate))
        total = max(frames + 1, round(c.sample_seconds * rate))
        cuts = PromptArgs(
            manifest_dir=str(self.dataset.directory),
            split=self.dataset.split,
            num_prompts=c.sample_count,
            prompt_seconds=c.sample_prompt_seconds,
        )
        alone = replace(cuts, prompt_seconds=0.0) if model.conditions else PromptArgs()
        output = OutputArgs(
            seconds=(total - frames) / rate,
            divide_texts=False,  # steps are compared by samples of one length
            min_seconds=1 / rate,  # an end at once would leave nothing to listen to
            batch_size=c.sample_count,
            seed=self.seed,
        )
        number = 1 if model.conditions else c.sample_count
        longer = replace(output, seconds=total / rate, num_samples=number)
        sampling = SamplingConfig(c.sample_temperature, c.sample_top_k)
        return [
            SampleRequest(
                read_prompts(args, self.conditions, model, codec, total, self.seed), out, sampling
            )
            for args, out in ((cuts, output), (alone, longer))
        ]

    def _write_reference(self, prompts: list[str], step: int) -> None:
        """Recordings and what the codec makes of them."""
        (self.folder / "reference").mkdir(parents=True)
        directory, split = self.dataset.directory, self.dataset.split
        stored = TokenDataset.open(directory, split).info  # all levels, as they were encoded
        seconds = self.config.sample_seconds
        try:
            held_out = HeldOutSplit(directory, split, stored)
            wanted = [name for prompt in prompts if (name := held_out.find(prompt))]
            found, remarks = held_out.read(held_out.choose(wanted, len(prompts)), seconds)
        except Exception as e:  # the samples of the model are still made
            found, remarks = [], [f"no recordings to compare with: {e}"]
        for remark in remarks:
            print(f"samples: {remark}", file=sys.stderr, flush=True)
        names = Names()
        for recording in found:
            for kind, audio in recording.audio().items():
                name = names.take(f"{kind}-{flat_name(recording.cut.id)}")
                audio = torch.from_numpy(np.ascontiguousarray(audio))
                about = {"kind": kind, "id": recording.cut.id, "text": recording.text}
                path = self.folder / "reference" / f"{name}.wav"
                write_sample(path, audio, stored.sampling_rate, about)
                self.log.audio(name, step, audio.mean(0), stored.sampling_rate)

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
            "kl_from_data": divergence(counts, self._counts),
            "kl_of_recordings": divergence(some, self._counts - some),
            "codes_used": [int(n) for n in (counts > 0).sum(1)],
            "frames": len(codes),
        }
