"""Audio that leaves while it is made is that of `generate`, sample for sample."""

import random
from dataclasses import replace

import pytest
import tiny_codecs
import torch

import rvqlm
from rvqlm.codecs.pretrained import from_model
from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError
from rvqlm.frontends.symbols import SymbolTable
from rvqlm.frontends.text import TextFrontEnd, TextSettings
from rvqlm.generation.kept import Kept
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig
from rvqlm.inference.conditions import ConditionArgs
from rvqlm.inference.generate import OutputArgs, SampleRequest, generate
from rvqlm.inference.prompts import Prompt, PromptArgs, read_prompts
from rvqlm.inference.stream import Streamer
from rvqlm.models.factory import build_model

SMALL = {"decoder_dim": 32, "nhead": 2, "num_decoder_layers": 2}


@pytest.fixture(scope="module")
def codec():
    """Of 50 frames a second."""
    torch.manual_seed(0)
    codec = from_model(tiny_codecs.dac(), "tiny-dac")
    codec.info = replace(codec.info, sampling_rate=50 * codec.info.hop)
    return codec


def toy(codec, family="codec-lm", conditions=None, **config):
    config = {**SMALL, **config, "conditions": tuple(conditions or ())}
    torch.manual_seed(0)
    model = build_model(family, config, codec.info, conditions or {})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model.eval()


def prompts(codec, lengths=(0, 5, 45)):
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


def check_the_same(codec, wanted, found, prompt, with_prompt=False):
    """A sample of `generate` and what was heard of it."""
    P = len(prompt.codes)
    assert torch.equal(torch.cat(found["codes"]), wanted.codes[P:])
    begin = 0 if with_prompt else codec.info.num_samples(P)
    audio = torch.cat(found["audio"], 1)
    torch.testing.assert_close(audio, wanted.audio[:, begin:], atol=1e-5, rtol=1e-4)
    about, ours = dict(wanted.about), dict(found["about"])
    assert 0 < ours["first_audio_seconds"] <= ours["generation_seconds"]
    assert ours["silence_ratio"] == pytest.approx(about["silence_ratio"])
    assert found["ended"] == about["stop"]
    for name in (*TIMES, "silence_ratio"):
        about.pop(name, None), ours.pop(name, None)
    assert ours == about


@pytest.mark.parametrize(
    "family,config,sampling,demask,windows",
    [
        ("codec-lm", {}, {}, {}, None),
        ("codec-lm", {}, {}, {}, 16),
        ("codec-lm", {"pattern": "flatten"}, {"top_k": 5}, {}, None),
        ("codec-lm", {"pattern": "coarse_first"}, {}, {}, None),
        ("codec-lm", {}, {"best_of": 2}, {}, None),
        ("valle", {}, {}, {}, None),
        ("valle", {}, {}, {}, 16),
        ("masked", {}, {}, {"steps": 2}, None),
        ("masked", {}, {}, {"steps": 2, "chunk_seconds": 0.2}, None),
        ("masked", {"ar_share": 0.5}, {}, {"frame_by_frame": True}, None),
    ],
)
@pytest.mark.parametrize("with_prompt", [False, True])
def test_what_is_heard_is_what_is_written(
    codec, family, config, sampling, demask, windows, with_prompt
):
    model = toy(codec, family, **config)
    sampling, demask = SamplingConfig(**sampling), DemaskConfig(**demask)
    output = OutputArgs(seconds=seconds(codec, 40), min_seconds=seconds(codec, 5), seed=3)
    if windows:
        output.context_seconds = seconds(codec, windows)
        output.context_overlap = seconds(codec, windows / 4)
    given = prompts(codec)
    wanted = list(generate(model, codec, SampleRequest(given, output, sampling, demask), {}))
    streamer = Streamer(model, codec, 2, piece_seconds=seconds(codec, 4))
    how = {"output": output, "sampling": sampling, "demask": demask, "with_prompt": with_prompt}
    adds = [{"prompt": p, "row": row, **how} for row, p in enumerate(given)]
    for sample, found, prompt in zip(wanted, heard_of(streamer, adds), given):
        check_the_same(codec, sample, found, prompt, with_prompt)


@pytest.mark.parametrize("family,kinds", [("codec-lm", {"model", "codec"}), ("valle", {"codec"})])
def test_what_was_made_of_a_shared_prompt_is_kept(codec, family, kinds):
    """And what comes of it is that of `generate`, and the same as the first time, bit for bit."""
    model, found = toy(codec, family), []
    given = [replace(prompt, shared=True) for prompt in prompts(codec)]
    output = OutputArgs(seconds=seconds(codec, 20), min_seconds=seconds(codec, 5), seed=3)
    kept = Kept(1 << 24, lambda kind, hit: found.append((kind, hit)))
    streamer = Streamer(model, codec, 2, piece_seconds=seconds(codec, 4), kept=kept)
    adds = [{"prompt": p, "row": row, "output": output} for row, p in enumerate(given)]
    first, again = heard_of(streamer, adds), heard_of(streamer, adds[::-1])[::-1]
    wanted = generate(model, codec, SampleRequest(given, output), {})
    for sample, one, other, prompt in zip(wanted, first, again, given):
        check_the_same(codec, sample, one, prompt)
        assert torch.equal(torch.cat(one["audio"], 1), torch.cat(other["audio"], 1))
    assert {kind for kind, _ in found} == kinds
    for kind in kinds:
        asked = [hit for k, hit in found if k == kind]
        assert asked[: len(asked) // 2] == [False] * (len(asked) // 2)
        assert asked[len(asked) // 2 :] == [True] * (len(asked) // 2)


@pytest.mark.parametrize("pattern,late", [("delay", 2), ("parallel", 0), ("flatten", 0)])
@pytest.mark.parametrize("length", [0, 1, 30])
def test_the_first_sound_waits_for_no_more_than_it_must(codec, pattern, late, length):
    """A frame, the delay of the pattern, and the codec's look-ahead."""
    model = toy(codec, pattern=pattern, model_end=False)
    behind, first = codec.look_ahead
    streamer = Streamer(model, codec)
    (prompt,) = prompts(codec, [length])
    streamer.add(prompt, OutputArgs(seconds=seconds(codec, 60)))
    steps, heard = 0, 0
    while not heard:
        heard = sum(h.audio.shape[1] for h in streamer.step())
        steps += 1
    assert steps == late + max(1 + behind, first - length)


def test_a_first_piece_as_long_as_wanted(codec):
    model = toy(codec, pattern="parallel", model_end=False)
    (prompt,) = prompts(codec, [5])
    output = OutputArgs(seconds=seconds(codec, 60))
    wanted = torch.cat(pieces(Streamer(model, codec), prompt, output), 1)
    found = pieces(Streamer(model, codec, first_seconds=seconds(codec, 6)), prompt, output)
    assert found[0].shape[1] >= 6 * codec.info.hop
    torch.testing.assert_close(torch.cat(found, 1), wanted)


def pieces(streamer, prompt, output):
    streamer.add(prompt, output)
    found = []
    while not streamer.free:
        found += [heard.audio for heard in streamer.step() if heard.audio.shape[1]]
    return found


def test_pieces_grow_with_what_was_heard(codec):
    """So that whoever listens has enough until the next, and the codec's context is not decoded
    again for every frame."""
    model = toy(codec, pattern="parallel", model_end=False)
    streamer = Streamer(model, codec, piece_seconds=seconds(codec, 8))
    streamer.add(prompts(codec, [0])[0], OutputArgs(seconds=seconds(codec, 100)))
    hop, pieces = codec.info.hop, []
    while not streamer.free:
        pieces += [h.audio.shape[1] / hop for h in streamer.step() if h.audio.shape[1]]
    assert sum(pieces) == 100 and max(pieces[:-1]) == 8
    assert all(piece <= max(8, 1 + sum(pieces[:n])) for n, piece in enumerate(pieces[:-1]))


def text_model(codec, family="codec-lm"):
    front_end = TextFrontEnd(TextSettings("chars"), SymbolTable.of(["<space>", ".", *"abcdefgh"]))
    info = ConditionInfo("text", (11,), 4.0, front_end.info(4.0).settings, aligned=True)
    model = toy(codec, family, {"text": info}, fusion="spread")
    torch.nn.init.normal_(model.duration_head.linear.weight, std=0.5)
    return model


def said(model, codec, text: str):
    return read_prompts(PromptArgs(), ConditionArgs(text=(text,)), model, codec, 100, 0)[0]


@pytest.mark.parametrize("family", ["codec-lm", "valle"])
def test_a_long_text_is_heard_sentence_by_sentence(codec, family):
    model = text_model(codec, family)
    texts = ["abba. cab. fed a bed. gag.", "bad cab."]
    given = [said(model, codec, text) for text in texts]
    output = OutputArgs(seconds=seconds(codec, 50), seed=1)
    wanted = list(generate(model, codec, SampleRequest(given, output), {}))
    assert len(wanted[0].about["sentences"]) > 1
    adds = [{"prompt": p, "output": output, "row": row} for row, p in enumerate(given)]
    for sample, found, prompt in zip(wanted, heard_of(Streamer(model, codec, 2), adds), given):
        check_the_same(codec, sample, found, prompt)


def test_whoever_leaves_makes_room(codec):
    model = toy(codec, model_end=False)
    one, *_, other = prompts(codec)
    output = OutputArgs(seconds=seconds(codec, 30))
    streamer = Streamer(model, codec, 2)
    first, second = streamer.add(one, output), streamer.add(other, output, row=1)
    with pytest.raises(UserError, match="all 2 slots are taken"):
        streamer.add(one, output)
    for _ in range(4):
        streamer.step()
    streamer.remove(first)
    assert streamer.free == 1 and {heard.slot for heard in streamer.step()} == {second}
    with pytest.raises(ValueError, match="nothing runs in slot"):
        streamer.remove(first)
    again = streamer.add(one, output)
    found = {again: [], second: []}
    while streamer.free < 2:
        for heard in streamer.step():
            found[heard.slot].append(heard.codes)
    assert torch.equal(
        torch.cat(found[again]), model.generate(rows=[0], max_new_frames=30).codes[0]
    )
    masked = toy(codec, "masked")
    streamer = Streamer(masked, codec, 1)
    slot = streamer.add(one, output, demask=DemaskConfig(chunk_seconds=seconds(codec, 9)))
    streamer.step()
    streamer.remove(slot)
    assert streamer.free == 1 and streamer.step() == []


def test_refusals_come_at_once(codec):
    model, (one, *_) = toy(codec), prompts(codec)
    for family, how, match in [
        ("codec-lm", {"demask": DemaskConfig(steps=3)}, "only masked models fill in"),
        ("codec-lm", {"sampling": SamplingConfig(cfg_scale=2.0)}, "guidance needs a model"),
        ("masked", {"sampling": SamplingConfig(best_of=2)}, "--best-of: masked draws no code"),
    ]:
        streamer = Streamer(toy(codec, family), codec)
        with pytest.raises(UserError, match=match):
            streamer.add(one, OutputArgs(), **how)
        assert streamer.free == 1
    streamer = Streamer(model, codec, max_seconds=seconds(codec, 10))
    with pytest.raises(UserError, match="a sequence of 20 frames, its prompt included"):
        streamer.add(one, OutputArgs(seconds=seconds(codec, 20)))
    text = text_model(codec)
    streamer = Streamer(text, codec, context_seconds=seconds(codec, 16))
    with pytest.raises(UserError, match="text: cannot be carried on"):
        streamer.add(said(text, codec, "bad cab."), OutputArgs(seconds=seconds(codec, 60)))


def test_one_sample_as_a_loop(codec):
    model = text_model(codec)
    output = OutputArgs(seconds=seconds(codec, 40), seed=5)
    request = SampleRequest([said(model, codec, "bad cab.")], output)
    (wanted,) = generate(model, codec, request, {})
    heard = list(rvqlm.stream(model, codec, text="bad cab.", seconds=output.seconds, seed=5))
    assert len(heard) > 2
    torch.testing.assert_close(torch.cat(heard, 1), wanted.audio, atol=1e-5, rtol=1e-4)
    model, (_, prompt, _) = toy(codec, model_end=False), prompts(codec)
    heard = list(rvqlm.stream(model, codec, prompt=prompt.codes, seconds=output.seconds, seed=5))
    (wanted,) = generate(model, codec, SampleRequest([prompt], output), {})
    new = wanted.audio[:, codec.info.num_samples(5) :]
    torch.testing.assert_close(torch.cat(heard, 1), new, atol=1e-5, rtol=1e-4)
