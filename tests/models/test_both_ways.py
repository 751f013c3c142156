"""One set of weights that fills in and writes frame after frame."""

import pytest
import torch
from families import INFO, SMALL, K, V, make, random_batch

from rvqlm.batch import Batch
from rvqlm.errors import UserError
from rvqlm.generation.sampling import DemaskConfig
from rvqlm.models.factory import build_model

AHEAD = DemaskConfig(frame_by_frame=True)
CASES = {
    "plain": {},
    "text-spread": {"conditions": ("text",), "fusion": "spread", "num_encoder_layers": 1},
    "source-cross": {"conditions": ("source",), "fusion": "cross", "cross_by_time": True},
    "prefix": {"conditions": ("text", "prompt"), "masking": "coarse_first", "head": "residual"},
}


def both(case, **changes):
    model = make("masked", ar_share=0.4, **CASES[case], **changes).eval()
    return model, random_batch(model, [7, 7])


def hidden(model, batch):
    context = model.network.encode_conditions(batch.conditions, 2)
    return model.ar.hidden(batch.codes.long(), context)


@pytest.mark.parametrize("case", CASES)
def test_no_frame_sees_itself_or_a_later_one(case):
    model, batch = both(case)
    with torch.no_grad():
        before = hidden(model, batch)
        for t in (0, 3, 6):
            changed = batch.codes.clone()
            changed[:, t] = (changed[:, t] + 1) % V
            batch_of = Batch.from_codes(list(changed))
            batch_of.conditions = batch.conditions
            after = hidden(model, batch_of)
            assert torch.equal(before[:, : t + 1], after[:, : t + 1])
            assert (before[:, t + 1 :] - after[:, t + 1 :]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("case", CASES)
def test_cached_equals_full_and_greedy_equals_recomputing(case):
    model, batch = both(case)
    with torch.no_grad():
        full = hidden(model, batch)
        start = torch.full((2, 1, K), V)
        inputs = torch.cat([start, batch.codes.long()], 1)
        state = model.ar.begin(batch.conditions, 2, 8, None)
        for begin, n in [(0, 3), *[(t, 1) for t in range(3, 8)]]:
            last, _ = model.ar.step(inputs[:, begin : begin + n], state)
            torch.testing.assert_close(last, full[:, begin + n - 1], atol=2e-4, rtol=1e-4)
    made = model.generate(
        batch.codes[:, :2], max_frames=7, min_frames=7, temperature=0, demask=AHEAD,
        conditions=batch.conditions,
    )  # fmt: skip
    assert torch.equal(made.codes[:, :2], batch.codes[:, :2].long())
    batch.codes = made.codes
    best = model.heads(hidden(model, batch)[:, :7]).argmax(-1)
    assert torch.equal(best[:, 2:], made.codes[:, 2:])


def test_both_losses_count_by_their_share_and_padding_changes_neither():
    model, _ = both("plain")
    batch = random_batch(model, [7, 4])
    with torch.no_grad():
        out, ar = model(batch), model.ar.loss(batch, 0.0, None)
        model.ar, kept = None, model.ar
        model.length_head = None
        masked = model(batch)
        model.ar = kept
        lengths = model(batch)
    torch.testing.assert_close(lengths.loss, 0.6 * masked.loss + 0.4 * ar.loss)
    torch.testing.assert_close(lengths.normalizer, 0.6 * masked.normalizer + 0.4 * ar.normalizer)
    assert torch.equal(out.nats, masked.nats)  # the codes' figures are of filling in
    assert torch.equal(out.sums["ar_nats"][0], ar.nats.sum())
    assert out.sums["ar_nats"][1] == 11 * K and out.sums["end_nats"][1] == 8 + 5


def test_learns_to_write_both_ways():
    """A sequence that says how it goes on: either way gives it back."""
    torch.manual_seed(0)
    config = {**SMALL, "ar_share": 0.5, "masking": "frame", "prompt_fraction": 0.9}
    model = build_model("masked", config, INFO).train()
    start = torch.arange(V)
    items = (start[:, None, None] + 2 * torch.arange(9)[:, None] + torch.arange(K)) % V  # (V, 9, K)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        out = model(Batch.from_codes(list(items)))
        (out.loss / out.normalizer).backward()
        optimizer.step()
    for demask in (AHEAD, DemaskConfig(steps=8)):
        made = model.generate(items[:, :2], max_frames=12, temperature=0, demask=demask)
        assert made.lengths.tolist() == [9] * V and torch.equal(made.codes, items)


def test_what_is_refused():
    model, batch = both("plain")
    with pytest.raises(UserError, match="--steps: --frame-by-frame has no passes"):
        model.generate(max_frames=3, demask=DemaskConfig(steps=3, frame_by_frame=True))
    with pytest.raises(UserError, match="fill gaps without it"):
        model.infill(batch.codes[:, :2], batch.codes[:, 3:], 2, demask=AHEAD)
    with pytest.raises(UserError, match="trained without --ar-share"):
        make("masked").generate(max_frames=3, demask=AHEAD)
    with pytest.raises(UserError, match="only masked models"):
        make("parallel").generate(max_frames=3, demask=AHEAD)
