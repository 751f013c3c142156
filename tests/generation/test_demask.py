"""The loop that fills in: known codes verbatim, items independent of the batch, the schedule kept,
and with a model that knows the true probabilities the samples come closer to the source with every
pass."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from entropy_source import MarkovSource

from rvqlm.batch import PAD, Padded
from rvqlm.codec_info import CodecInfo
from rvqlm.generation.demask import demask
from rvqlm.generation.request import make_request
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig

K, V, T = 2, 3, 12
INFO = CodecInfo("markov", "", 50, 1, K, V)
SOURCE = MarkovSource(K, V, seed=3)
MASKINGS = ("frame", "level", "coarse_first")


class Oracle:
    """The exact distribution of every hidden code given the visible ones, by the forward and the
    backward pass of a hidden Markov model; keeps what it was shown."""

    special, frame_rate = V, 50.0

    def __init__(self, masking="level"):
        self.masking, self.seen = masking, []

    def choose_lengths(self, request, uniform):
        return request.limits, torch.zeros(len(uniform), dtype=torch.bool)

    def encode_conditions(self, conditions, frames, drop):
        return None

    def hidden(self, codes, frames, context, positions):
        self.seen.append(codes.clone())
        x = codes.numpy()[:, :, None, :]  # (B, T, 1, K)
        fits = ((x == V) | (x == SOURCE.digits)).all(-1).astype(float)  # (B, T, states)
        forward, backward = fits.copy(), np.ones_like(fits)
        forward[:, 0] *= SOURCE.stationary
        for t in range(1, codes.shape[1]):
            forward[:, t] *= forward[:, t - 1] @ SOURCE.transition
            forward[:, t] /= forward[:, t].sum(1, keepdims=True)
        for t in range(codes.shape[1] - 2, -1, -1):
            backward[:, t] = (fits[:, t + 1] * backward[:, t + 1]) @ SOURCE.transition.T
            backward[:, t] /= backward[:, t].sum(1, keepdims=True)
        p = forward * backward
        members = SOURCE.digits[:, :, None] == np.arange(V)  # (states, K, V)
        p = np.einsum("bts,skv->btkv", p / p.sum(-1, keepdims=True), members)
        return torch.from_numpy(np.log(p + 1e-30)).flatten(2)

    def logits(self, hidden, level):
        return hidden[:, level * V : (level + 1) * V]


def fill(model, items=1, frames=T, seed=0, sampling=None, rows=None, limits=None, **options):
    request = make_request(
        INFO,
        torch.device("cpu"),
        options.pop("prompts", None),
        options.pop("prompt_lengths", None),
        max_frames=None if limits is not None else frames,
        limits=limits,
        batch_size=items,
        sampling=sampling,
        seed=seed,
        rows=rows,
        progress=options.pop("progress", None),
        demask=DemaskConfig(**{k: v for k, v in options.items() if k != "suffix"}),
    )
    if "suffix" in options:
        request = replace(request, suffix_codes=options["suffix"])
    return demask(model, request)


def log_likelihood(codes):
    """(B,) nats per frame under the source; of its own samples, on average minus the entropy."""
    states = (codes.numpy() * V ** np.arange(K - 1, -1, -1)).sum(-1)
    steps = np.log(SOURCE.transition[states[:, :-1], states[:, 1:]]).sum(1)
    return (np.log(SOURCE.stationary[states[:, 0]]) + steps) / codes.shape[1]


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("score", ["random", "confidence"])
def test_more_passes_are_likelier_under_the_source(masking, score):
    made = []
    for steps in (1, 2, 4, 12):
        options = {"fine_steps": steps} if masking == "coarse_first" else {}
        codes = fill(Oracle(masking), 500, steps=steps, score=score, **options).codes
        made.append(log_likelihood(codes).mean())
    assert all(b > a + 0.03 for a, b in itertools.pairwise(made)), made


@pytest.mark.parametrize("masking", ["level", "coarse_first"])
def test_one_code_a_pass_in_random_order_is_the_source_itself(masking):
    steps = {"level": {"steps": T * K}, "coarse_first": {"steps": T, "fine_steps": T}}[masking]
    found = log_likelihood(fill(Oracle(masking), 2000, score="random", **steps).codes)
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() + SOURCE.entropy(T)) < 4 * error
    assert error < 0.01


@pytest.mark.parametrize("masking", MASKINGS)
def test_hidden_codes_fall_along_a_cosine_and_stay_filled_in(masking):
    model, steps = Oracle(masking), 4
    fill(model, 3, steps=steps, fine_steps=2 if masking == "coarse_first" else None)
    hidden = torch.stack([codes == V for codes in model.seen])  # (passes, B, T, K)
    left = [1.0, *np.cos(np.pi / 2 * np.arange(1, steps) / steps)]
    if masking == "coarse_first":
        wanted = [K * T - T + int(s * T) for s in left] + [T, int(np.cos(np.pi / 4) * T)]
        assert not hidden[4:, ..., 0].any()
    elif masking == "frame":
        wanted = [K * int(s * T) for s in left]
        assert torch.equal(hidden.any(-1), hidden.all(-1))
    else:
        wanted = [int(s * T * K) for s in left]
    assert hidden.sum((2, 3)).tolist() == [[n] * 3 for n in wanted]
    for before, after in itertools.pairwise(model.seen):
        kept = before != V
        assert torch.equal(before[kept], after[kept])


@pytest.mark.parametrize("masking", MASKINGS)
def test_remasking_takes_codes_back(masking):
    model = Oracle(masking)
    made = fill(model, 8, steps=6, remask=True)
    taken = [((a != V) & (b == V)).sum() for a, b in itertools.pairwise(model.seen)]
    assert sum(taken) > 0
    assert (made.codes < V).all()
    counts = torch.stack([(c == V).sum((1, 2)) for c in model.seen])
    assert (counts.diff(dim=0) < 0).all()


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("steps", [1, 5, 100])
def test_any_number_of_passes_fills_everything(masking, steps):
    calls = []
    made = fill(Oracle(masking), 2, frames=4, steps=steps, progress=calls.append)
    assert ((made.codes >= 0) & (made.codes < V)).all()
    assert made.lengths.tolist() == [4, 4] and made.stop == ["length"] * 2
    passes = steps + (K - 1) * (masking == "coarse_first")
    assert calls == list(range(1, passes + 1))


@pytest.mark.parametrize("masking", MASKINGS)
def test_known_sides_are_verbatim_and_seen(masking):
    model = Oracle(masking)
    before, after = torch.randint(V, (3, 4, K)), torch.randint(V, (3, 2, K))
    made = fill(model, 3, frames=9, prompts=before, suffix=after, steps=3)
    assert made.codes.shape == (3, 11, K) and made.prompt_lengths.tolist() == [4] * 3
    for codes in [*model.seen, made.codes]:
        assert torch.equal(codes[:, :4], before) and torch.equal(codes[:, 9:], after)
    assert (model.seen[0][:, 4:9] == V).all()


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("remask", [None, True])
def test_items_do_not_depend_on_the_batch(masking, remask):
    prompts, lengths = torch.randint(V, (3, 5, K)), torch.tensor([5, 0, 2])
    limits = torch.tensor([6, 12, 9])
    options = {"steps": 5, "seed": 7, "remask": remask}
    if masking == "coarse_first":
        options["fine_steps"] = 4
    made = fill(
        Oracle(masking), 3, prompts=prompts, prompt_lengths=lengths, limits=limits, **options
    )
    assert made.lengths.tolist() == limits.tolist()
    for i, (n, p) in enumerate(zip(limits.tolist(), lengths.tolist())):
        assert torch.equal(made.codes[i, :p], prompts[i, :p])
        assert (made.codes[i, n:] == PAD).all()
        alone = fill(
            Oracle(masking),
            1,
            prompts=prompts[i : i + 1, :p],
            limits=limits[i : i + 1],
            rows=[i],
            **options,
        )
        assert torch.equal(alone.codes[0], made.codes[i, :n])


CHUNKS = {"chunk_seconds": 0.08, "overlap_seconds": 0.04}  # 4 frames, shown 2


@pytest.mark.parametrize("masking", MASKINGS)
def test_chunks_are_bounded_and_known_sides_verbatim(masking):
    model, calls = Oracle(masking), []
    before, after = torch.randint(V, (3, 5, K)), torch.randint(V, (3, 3, K))
    made = fill(
        model, 3, frames=17, prompts=before, suffix=after, steps=3, progress=calls.append, **CHUNKS
    )
    assert torch.equal(made.codes[:, :5], before) and torch.equal(made.codes[:, 17:], after)
    assert (made.codes < V).all() and made.lengths.tolist() == [20] * 3
    # two before and four; the same; two before, four and two of what follows
    passes = 3 + (K - 1) * (masking == "coarse_first")
    assert [c.shape[1] for c in model.seen] == [6] * 2 * passes + [8] * passes
    assert calls == list(range(1, 3 * passes + 1))
    for i, codes in enumerate(model.seen):
        start = 3 + 4 * (i // passes)
        assert torch.equal(codes[:, :2], made.codes[:, start : start + 2])


@pytest.mark.parametrize("masking", MASKINGS)
def test_chunks_do_not_depend_on_the_batch_and_one_chunk_is_none(masking):
    prompts, lengths = torch.randint(V, (3, 5, K)), torch.tensor([5, 0, 2])
    limits = torch.tensor([6, 12, 9])
    options = {"steps": 3, "seed": 7}
    given = {"prompts": prompts, "prompt_lengths": lengths, "limits": limits}
    made = fill(Oracle(masking), 3, **given, **options, **CHUNKS)
    for i, (n, p) in enumerate(zip(limits.tolist(), lengths.tolist())):
        row = {"prompts": prompts[i : i + 1, :p], "limits": limits[i : i + 1], "rows": [i]}
        alone = fill(Oracle(masking), 1, **row, **options, **CHUNKS)
        assert torch.equal(alone.codes[0], made.codes[i, :n])
    whole = fill(Oracle(masking), 3, **given, **options)
    assert torch.equal(
        fill(Oracle(masking), 3, **given, **options, chunk_seconds=9.0).codes, whole.codes
    )
    assert not torch.equal(made.codes, whole.codes)


def test_chunks_that_see_the_frame_before_are_the_source_itself():
    """A Markov chain needs no more."""
    model = Oracle()
    chunks = {"chunk_seconds": 0.08, "overlap_seconds": 0.02}
    found = log_likelihood(fill(model, 2000, score="random", steps=4 * K, **chunks).codes)
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() + SOURCE.entropy(T)) < 4 * error
    blind = {"chunk_seconds": 0.08, "overlap_seconds": 0.0}
    worse = log_likelihood(fill(model, 2000, score="random", steps=4 * K, **blind).codes)
    assert worse.mean() < found.mean() - 10 * error


def test_seed_score_and_noise():
    greedy = SamplingConfig(temperature=0)

    def made(seed, sampling=None, **options):
        return fill(Oracle(), 4, seed=seed, sampling=sampling, steps=6, **options).codes

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))
    assert torch.equal(made(1, greedy, score_noise=0.0), made(2, greedy, score_noise=0.0))
    assert not torch.equal(made(1, greedy, score_noise=5.0), made(2, greedy, score_noise=5.0))
    assert not torch.equal(made(1, greedy, score="random"), made(1, greedy, score_noise=0.0))


def test_codes_that_the_model_is_surest_of_come_first():
    """Without noise the first pass keeps those of the greatest probability."""
    model, prompt = Oracle(), torch.tensor([[[0, 1]]])
    greedy = SamplingConfig(temperature=0)
    fill(model, 1, prompts=prompt, steps=8, score_noise=0.0, sampling=greedy)
    sure = model.hidden(model.seen[0], None, None, None).view(1, T, K, V).amax(-1)
    hidden, left = model.seen[0] == V, model.seen[1] == V
    kept = hidden & ~left
    assert int(kept.sum()) == 22 - int(22 * np.cos(np.pi / 16))
    assert sure[kept].min() >= sure[left].max() - 1e-9


class Two(Oracle):
    """Logits that differ between the rows that have the conditions and those that don't."""

    def encode_conditions(self, conditions, frames, drop):
        return drop

    def hidden(self, codes, frames, drop, positions):
        conditional = torch.tensor([0.0, 1.0, 1.1]).repeat(K)
        unconditional = torch.tensor([0.0, 0.0, 1.0]).repeat(K)
        rows = torch.where(drop[:, None], unconditional, conditional)
        return rows[:, None].expand(*codes.shape[:2], K * V)


@pytest.mark.parametrize("scale,code", [(0.0, 2), (1.01, 2), (3.0, 1)])
def test_guidance_goes_from_unconditional_to_conditional(scale, code):
    """u + 3 (c - u) is 0, 3, 1.3; u + 1.01 (c - u) is 0, 1.01, 1.101."""
    request = make_request(
        INFO,
        torch.device("cpu"),
        max_frames=5,
        conditions={"text": Padded.of([torch.zeros(2)] * 3, 1)},
        sampling=SamplingConfig(temperature=0, cfg_scale=scale),
    )
    assert (demask(Two(), request).codes == code).all()
