"""Audio that leaves while it is made is that of `generate`, sample for sample."""

import random

import pytest
import tiny_codecs
import torch

from rvqlm.codecs.pretrained import from_model
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig
from rvqlm.inference.generate import OutputArgs, SampleRequest, generate
from rvqlm.inference.prompts import Prompt
from rvqlm.inference.stream import Streamer
from rvqlm.models.factory import build_model

SMALL = {"decoder_dim": 32, "nhead": 2, "num_decoder_layers": 2}


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return from_model(tiny_codecs.dac(), "tiny-dac")


def toy(codec, family="codec-lm", conditions=None, **config):
    config = {**SMALL, **config, "conditions": tuple(conditions or ())}
    torch.manual_seed(0)
    model = build_model(family, config, codec.info, conditions or {})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model.eval()


def prompts(codec, lengths=(0, 5, 12)):
    torch.manual_seed(1)
    K, V = codec.info.num_codebooks, codec.info.codebook_size
    return [Prompt(torch.randint(V, (n, K)), f"p{n}") for n in lengths]


def seconds(codec, frames: float) -> float:
    return frames / float(codec.info.frame_rate)


def heard_of(streamer, adds: list[dict]) -> list[dict]:
    """Add samples at random moments; of each its audio, codes and description."""
    draw, waiting, slots, found = random.Random(0), list(enumerate(adds)), {}, {}
    while waiting or slots:
        while waiting and streamer.free and draw.random() < 0.3:
            number, options = waiting.pop(0)
            slots[streamer.add(**options)] = number
            found[number] = {"audio": [], "codes": []}
        for heard in streamer.step():
            one = found[slots[heard.slot]]
            one["audio"].append(heard.audio)
            one["codes"].append(heard.codes)
            if heard.ended:
                one |= {"ended": heard.ended, "about": heard.about}
                del slots[heard.slot]
    assert streamer.free == streamer.slots
    return [found[number] for number in range(len(adds))]


TIMES = ("first_audio_seconds", "generation_seconds", "real_time_factor", "batch_size", "passes")


@pytest.mark.parametrize(
    "family,config,sampling,demask",
    [
        ("codec-lm", {}, {}, {}),
        ("codec-lm", {"pattern": "flatten"}, {"top_k": 5}, {}),
        ("codec-lm", {"pattern": "coarse_first"}, {}, {}),
        ("codec-lm", {}, {"best_of": 2}, {}),
        ("valle", {}, {}, {}),
        ("masked", {}, {}, {"steps": 2}),
        ("masked", {}, {}, {"steps": 2, "chunk_seconds": 0.01}),
        ("masked", {"ar_share": 0.5}, {}, {"frame_by_frame": True}),
    ],
)
def test_what_is_heard_is_what_is_written_to_a_file(codec, family, config, sampling, demask):
    model = toy(codec, family, **config)
    sampling, demask = SamplingConfig(**sampling), DemaskConfig(**demask)
    output = OutputArgs(seconds=seconds(codec, 40), min_seconds=seconds(codec, 5), seed=3)
    given = prompts(codec)
    wanted = list(generate(model, codec, SampleRequest(given, output, sampling, demask), {}))
    streamer = Streamer(model, codec, 2, piece_seconds=seconds(codec, 4))
    adds = [
        {"prompt": p, "output": output, "sampling": sampling, "demask": demask, "row": row}
        for row, p in enumerate(given)
    ]
    for sample, found, p in zip(wanted, heard_of(streamer, adds), given):
        P = len(p.codes)
        assert torch.equal(torch.cat(found["codes"]), sample.codes[P:])
        audio = torch.cat(found["audio"], 1)
        new = sample.audio[:, codec.info.num_samples(P) :]
        torch.testing.assert_close(audio, new, atol=1e-5, rtol=1e-4)
        about, ours = dict(sample.about), dict(found["about"])
        assert 0 < ours["first_audio_seconds"] <= ours["generation_seconds"]
        assert ours["silence_ratio"] == pytest.approx(about["silence_ratio"])
        for name in (*TIMES, "silence_ratio"):
            about.pop(name, None), ours.pop(name, None)
        assert ours == about
