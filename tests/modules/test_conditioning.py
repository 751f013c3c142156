"""Conditions: where they lie in time, what is dropped, and that fusion loses nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rvqlm.batch import Padded
from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError
from rvqlm.frontends.midi import MidiFrontEnd
from rvqlm.frontends.midi_file import Notes
from rvqlm.modules.conditioning import ConditionedTransformer, Conditioner
from rvqlm.modules.embeddings import SumEmbedding
from rvqlm.modules.time_axis import by_clock
from rvqlm.modules.transformer import TransformerConfig

CONFIG = TransformerConfig(dim=32, num_heads=2, num_layers=2, dim_feedforward=64)
INFOS = {
    "text": ConditionInfo("text", (11,), rate=3.0),
    "source": ConditionInfo("source", (5, 5)),
    "prompt": ConditionInfo("prompt", (5, 5)),
    "midi": ConditionInfo("midi", (7, 100), clock=(1, 0.5)),
}


def steps(kind, *counts):
    sizes = INFOS[kind].sizes
    fields = [torch.stack([torch.randint(s, (n,)) for s in sizes], 1) if n else None
              for n in counts]  # fmt: skip
    return Padded.of(fields, len(sizes))


def places(kind, given, **how):
    """Positions of the steps of one kind, the leading one left out, item by item."""
    context = Conditioner({kind: INFOS[kind]}, 8)({kind: given}, len(given.lengths), **how)
    real = context.mask[:, 1:]
    return [p[1:][m].tolist() for p, m in zip(context.positions, real)]


def test_places_on_the_time_axis():
    given = steps("text", 2, 4)
    assert places("text", given) == [[1.5, 4.5], [1.5, 4.5, 7.5, 10.5]]
    assert places("text", given, steps_per_frame=2.0)[0] == [3.0, 9.0]
    # spread over the frames where these are known
    spread = places("text", given, frames=torch.tensor([20, 8]))
    assert spread == [[5.0, 15.0], [1.0, 3.0, 5.0, 7.0]]
    assert places("source", steps("source", 3)) == [[0.0, 1.0, 2.0]]
    assert places("prompt", steps("prompt", 3, 1)) == [[-3.0, -2.0, -1.0], [-1.0]]


def test_a_cast_to_16_bits_leaves_durations_alone():
    durations = tuple(1 + n / 300 for n in range(300))
    info = ConditionInfo("text", (300,), durations=durations)
    text = {"text": Padded.of([torch.arange(300)], 1)}
    wanted = Conditioner({"text": info}, 16)(text, 1).positions
    assert wanted.equal(Conditioner({"text": info}, 16).bfloat16()(text, 1).positions)


def test_durations_and_silence():
    info = ConditionInfo("text", (3,), durations=(1.0, 2.0, 5.0), margins=(3.0, 6.0))
    given = Padded.of([torch.tensor([1, 2, 1])], 1)
    context = Conditioner({"text": info}, 8)({"text": given}, 1)
    assert context.positions[0].tolist() == [0.0, 4.0, 7.5, 11.0]
    # 27 frames: 9 of silence, 18 for 9 frames' worth of symbols; 10 frames: half for the text
    for frames, want in ((27, [5.0, 12.0, 19.0]), (10, [2.2222, 4.1667, 6.1111])):
        context = Conditioner({"text": info}, 8)({"text": given}, 1, frames=torch.tensor([frames]))
        torch.testing.assert_close(context.positions[0, 1:], torch.tensor(want), atol=1e-3, rtol=0)


def test_notes_lie_where_they_begin():
    times = torch.tensor([3, 90, 90, 5, 40, 2])  # of 100 counts a turn
    notes = Padded.of([torch.stack([torch.zeros_like(times), times], 1)], 2)
    assert places("midi", notes) == [[1.5, 45.0, 45.0, 52.5, 70.0, 101.0]]


def test_notes_after_a_rest_of_more_than_a_turn():
    """As the front end reads its own tokens: 20 ms a position, 20.48 s a turn. What sounds from
    before, however long, lies at the beginning."""
    front_end = MidiFrontEnd()
    time = np.array([-30.0, -0.5, 21.0, 21.5, 41.9, 41.9, 68.0, 68.1, 89.0])
    notes = Notes(time, np.maximum(-time, 0) + 1, *(np.ones(len(time), np.int64) for _ in range(3)))
    tokens = front_end.tokens(notes)
    info = replace(front_end.info(4.0), clock=(4, 0.02 * 50))  # 50 frames a second
    got = by_clock(info, torch.as_tensor(tokens)[None])[0]
    assert got.tolist() == np.floor(np.maximum(time, 0) * 50 + 1e-6).tolist()
    back = front_end.notes(tokens).time
    np.testing.assert_allclose(back[2:] * 50, got[2:], atol=1)
    np.testing.assert_allclose(back[:2], [-28.6, -0.5], atol=0.05)  # 28.6 s is the most


def test_missing_and_dropped_are_the_same():
    torch.manual_seed(0)
    conditioner = Conditioner({k: INFOS[k] for k in ("text", "prompt")}, 8)
    both = {"text": steps("text", 3, 2), "prompt": steps("prompt", 2, 4)}
    nothing = conditioner({}, 2)
    assert nothing.mask.all() and nothing.x.shape[1] == 2  # one step a kind, "not given"
    dropped = conditioner(both, 2, drop=torch.tensor([True, False]))
    assert dropped.mask.sum(1).tolist() == [2, 2 + 2 + 4]
    assert torch.equal(dropped.x[0][dropped.mask[0]], nothing.x[0])
    assert not torch.equal(dropped.x[1, 0], nothing.x[1, 0])


def test_dropout_takes_all_or_single_conditions():
    torch.manual_seed(0)
    conditioner = Conditioner({k: INFOS[k] for k in ("text", "prompt")}, 8, dropout=0.25)
    both = {"text": steps("text", *[1] * 4000), "prompt": steps("prompt", *[1] * 4000)}
    mask = conditioner(both, 4000).mask[:, [1, 3]]
    none, alone = (~mask).all(1).float().mean(), (~mask).sum(1).eq(1).float().mean()
    # 1/4 by the draw for all, and 3/4 * (1/4)^2 by both single draws
    assert abs(none - (0.25 + 0.75 / 16)) < 0.02 and abs(alone - 0.75 * 2 * 0.25 * 0.75) < 0.025
    assert conditioner.eval()(both, 4000).mask.all()


@pytest.mark.parametrize("fusion", ["prefix", "cross", "spread"])
@pytest.mark.parametrize("layers", [0, 1])
def test_cached_equals_full_and_batch_composition_changes_nothing(fusion, layers):
    torch.manual_seed(0)
    infos = {k: INFOS[k] for k in ("text", "prompt")}
    model = ConditionedTransformer(CONFIG, infos, fusion, layers)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    given = {"text": steps("text", 4, 6), "prompt": steps("prompt", 3, 0)}
    x = torch.randn(2, 7, 32)
    full = model(x, model.encode_conditions(given, 2))
    state = model.start(model.encode_conditions(given, 2), 2, 7)
    parts = [model.step(x[:, s : s + n], state) for s, n in ((0, 3), (3, 1), (4, 2), (6, 1))]
    torch.testing.assert_close(torch.cat(parts, 1), full, atol=1e-5, rtol=1e-5)
    alone = {k: Padded(p.values[:1, : p.lengths[0]], p.lengths[:1]) for k, p in given.items()}
    torch.testing.assert_close(
        model(x[:1], model.encode_conditions(alone, 1)), full[:1], atol=1e-5, rtol=1e-5
    )
    other = dict(given, text=steps("text", 4, 6))
    assert not torch.allclose(model(x, model.encode_conditions(other, 2)), full)


def test_long_masked_sequences_in_blocks_equal_the_whole(monkeypatch):
    from rvqlm.modules import attention

    torch.manual_seed(0)
    model = ConditionedTransformer(CONFIG, {"text": INFOS["text"]})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    context = model.encode_conditions({"text": steps("text", 9, 4)}, 2)
    x = torch.randn(2, 23, 32)
    whole = model(x, context)
    monkeypatch.setattr(attention, "CPU_BLOCK", 5)
    torch.testing.assert_close(model(x, context), whole, atol=1e-5, rtol=1e-5)


def test_nearest_steps():
    conditioner = Conditioner({"text": INFOS["text"]}, 8)
    context = conditioner({"text": steps("text", 2, 0, 3)}, 3, frames=torch.tensor([7, 9, 6]))
    times = torch.arange(8.0).expand(3, 8)
    got = context.nearest("text", times)
    order = [[1, 1, 1, 1, 2, 2, 2, 0], [0] * 8, [1, 1, 2, 2, 3, 3, 0, 0]]  # 0: outside, missing
    for b in range(3):
        assert torch.equal(got[b], context.x[b, torch.tensor(order[b])])
    assert torch.equal(
        conditioner({}, 2).nearest("text", times[:2]), conditioner({}, 2).x.expand(2, 8, 8)
    )


def naive_covering(x, missing, spans, lengths, at, rate):
    """What each symbol takes of each step of the transformer, where it lasts a step at least; what
    is in all more than the step is scaled down, what is less leaves room for `missing`."""
    out = torch.zeros(len(at), x.shape[-1])
    for n, step in enumerate(at):
        shares = []
        for begin, end in spans[:lengths]:
            middle, half = (begin + end) / 2 * rate, max((end - begin) * rate, 1.0) / 2
            shares.append(max(0.0, min(middle + half, step + 1) - max(middle - half, step)))
        for share, vector in zip(shares, x):
            out[n] += share / max(1.0, sum(shares)) * vector
        out[n] += max(0.0, 1 - sum(shares)) * missing
    return out


@pytest.mark.parametrize("rate", [1, 3])
def test_what_lies_over_a_step_equals_a_naive_loop(rate):
    """Silence around, symbols of no length, many within a frame, ends after the codes, overlaps,
    one symbol, none, and one text whose times are not known."""
    torch.manual_seed(0)
    info = replace(INFOS["text"], aligned=True)
    times = [
        [[1.0, 2.0], [2.0, 2.0], [2.0, 3.25], [3.25, 3.5], [3.5, 3.6], [3.6, 9.0]],
        [[0.5, 2.5], [1.5, 4.0]],
        [[2.2, 2.3]],
        None,
        None,
    ]
    counts = (6, 2, 1, 0, 2)
    ids = [torch.randint(11, (n,)) if n else None for n in counts]
    given = Padded.of(ids, 1, [None if t is None else torch.tensor(t) for t in times])
    assert given.times[0, :, 0].tolist() == [1.0, 2.0, 2.0, 3.25, 3.5, torch.tensor(3.6).item()]
    assert given.times[1, 2:].isnan().all() and given.times[3:].isnan().all()
    conditioner = Conditioner({"text": info}, 8)
    context = conditioner({"text": given}, 5, steps_per_frame=float(rate))
    at = torch.arange(7 * rate)
    got = context.spread("text", at.expand(5, -1))
    times[4] = [[0.0, 3.0], [3.0, 6.0]]  # 3 frames a symbol on average
    for n, count in enumerate(counts):
        x, spans = context.x[n], times[n] or []
        want = naive_covering(x[1:], x[0], spans, count, at.tolist(), rate)
        torch.testing.assert_close(got[n], want, rtol=1e-5, atol=1e-5)
        middles = [rate * (begin + end) / 2 for begin, end in spans]
        torch.testing.assert_close(context.positions[n, 1 : 1 + count], torch.tensor(middles))
    # whole frames have their own symbol, not a part of the one beside
    for n, begin in ((1, 0), (2, 3 * rate)):
        assert torch.allclose(got[4, begin : begin + 3 * rate], context.x[4, n], atol=1e-6)
    # and one that was dropped says so everywhere
    none = conditioner({"text": given}, 5, drop=torch.ones(5, dtype=torch.bool))
    other = none.spread("text", at.expand(5, -1))
    assert torch.allclose(other, conditioner({}, 5).x.expand(5, 7 * rate, 8), atol=1e-6)
    # without alignment nobody looks at them
    plain = Conditioner({"text": INFOS["text"]}, 8)({"text": given}, 5)
    assert not plain.edges and plain.positions[0, 1:].tolist() == [1.5 + 3 * n for n in range(6)]


def test_codes_as_conditions_share_the_input_side():
    torch.manual_seed(0)
    embedding = SumEmbedding(2, 6, 8)
    conditioner = Conditioner({"source": INFOS["source"]}, 8, codes=embedding)
    assert not [n for n, _ in conditioner.named_parameters() if "fields" in n]
    given = steps("source", 3)
    x = conditioner({"source": given}, 1).x[0, 1:] - conditioner.kind
    torch.testing.assert_close(x, embedding(given.values)[0])


def test_refusals():
    model = ConditionedTransformer(CONFIG, {"text": INFOS["text"]})
    with pytest.raises(UserError, match="not trained with the condition prompt"):
        model.encode_conditions({"prompt": steps("prompt", 2)}, 1)
    with pytest.raises(UserError, match="2 fields, the model wants 1"):
        model.encode_conditions({"text": steps("prompt", 2)}, 1)
    with pytest.raises(UserError, match="without conditions"):
        ConditionedTransformer(CONFIG).encode_conditions({"text": steps("text", 2)}, 1)
