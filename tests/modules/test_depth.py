"""Depth heads are an exact joint distribution of a frame, drawn as it is trained."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from rvqlm.modules.depth import DepthHeads, attend_levels

K, V, D = 3, 4, 6


@pytest.fixture
def heads():
    torch.manual_seed(0)
    heads = DepthHeads(K, V, D, depth_dim=8, num_layers=2, num_heads=2).double()
    for p in heads.parameters():
        torch.nn.init.normal_(p)
    return heads.eval()


def test_probabilities_of_all_frames_add_up_to_one(heads):
    frames = torch.tensor(list(itertools.product(range(V), repeat=K)))  # (V^K, K)
    valid = torch.ones_like(frames, dtype=torch.bool)
    for hidden in torch.randn(3, D).double():
        # each frame's -log p is the sum of its levels' nats
        nats = [heads.loss(hidden[None], f[None], v[None]).loss for f, v in zip(frames, valid)]
        p = torch.exp(-torch.stack(nats))
        torch.testing.assert_close(p.sum(), torch.ones(()).double())
        assert p.max() > 2 / V**K  # not the uniform distribution


def test_a_level_sees_the_levels_before_it_and_no_others(heads):
    hidden, codes = torch.randn(1, D).double(), torch.randint(V, (1, K))
    logits = heads(hidden, codes)
    for k in range(K):
        other = codes.clone()
        other[:, k] = (other[:, k] + 1) % V
        differs = (heads(hidden, other) != logits).any(-1)[0].tolist()
        assert differs == [level > k for level in range(K)]


def test_every_level_sees_the_hidden_state(heads):
    hidden = torch.randn(1, D).double().requires_grad_()
    logits = heads(hidden, torch.randint(V, (1, K)))
    for k in range(K):
        (grad,) = torch.autograd.grad(logits[0, k].square().sum(), hidden, retain_graph=True)
        assert grad.any()


def test_leading_dimensions(heads):
    hidden, codes = torch.randn(2, 5, D).double(), torch.randint(V, (2, 5, K))
    flat = heads(hidden.flatten(0, 1), codes.flatten(0, 1))
    torch.testing.assert_close(heads(hidden, codes), flat.view(2, 5, K, V))


def test_draws_from_the_distribution_it_is_trained_on(heads):
    hidden, seen = torch.randn(5, D).double(), []

    def choose(level, logits):
        assert level == len(seen) and logits.shape == (5, 1, V)
        seen.append(logits)
        return torch.randint(V, (5, 1))

    codes = heads.draw(hidden, choose)
    assert codes.shape == (5, K)
    torch.testing.assert_close(torch.cat(seen, 1), heads(hidden, codes))


def test_rows_with_and_without_a_condition_hear_the_same_codes(heads):
    hidden, seen = torch.randn(6, D).double(), []

    def choose(level, logits):
        seen.append(logits)
        return (3 * logits[:3] - 2 * logits[3:]).argmax(-1)

    codes = heads.draw(hidden, choose)
    assert codes.shape == (3, K)
    torch.testing.assert_close(torch.cat(seen, 1), heads(hidden, codes.repeat(2, 1)))


def test_empty_cells_are_seen_as_such(heads):
    hidden, codes = torch.randn(1, D).double(), torch.zeros(1, K, dtype=torch.long)
    empty, padding = codes.clone(), codes.clone()
    empty[0, 0], padding[0, 0] = V, -1
    logits = heads(hidden, empty)
    assert torch.equal(heads(hidden, padding), logits)
    for code in range(V):
        codes[0, 0] = code
        assert not torch.allclose(heads(hidden, codes)[0, 1], logits[0, 1])
    # and a choice may be one
    chosen = iter(empty[0].tolist())
    seen = []
    heads.draw(hidden, lambda _, x: seen.append(x) or torch.tensor([[next(chosen)]]))
    torch.testing.assert_close(torch.cat(seen, 1), logits)


def test_codes_not_scored_are_seen(heads):
    """A level that does not count in the loss is still context of the finer ones."""
    hidden, codes = torch.randn(9, D).double(), torch.randint(V, (9, K))
    valid = torch.tensor([False, True, True]).expand(9, K)
    log_p = heads(hidden, codes).log_softmax(-1).gather(-1, codes.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(heads.loss(hidden, codes, valid).loss, -log_p[:, 1:].sum())


def test_learns_what_independent_heads_cannot():
    """Levels equal to each other: log V nats for the first, none for the others."""
    torch.manual_seed(0)
    heads = DepthHeads(K, V, D, depth_dim=16, num_layers=1, num_heads=2)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-2)
    hidden, valid = torch.zeros(64, D), torch.ones(64, K, dtype=torch.bool)
    for _ in range(60):
        codes = torch.randint(V, (64, 1)).expand(64, K)
        out = heads.loss(hidden, codes, valid)
        optimizer.zero_grad()
        (out.loss / 64).backward()
        optimizer.step()
    nats = out.sums["nats"] / 64
    assert 1.3 < nats[0] < 1.5  # log 4 = 1.386
    assert nats[1:].max() < 0.05


@pytest.mark.parametrize("queries,levels", [(9, 9), (1, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_attention_over_levels_is_causal(queries, levels, dtype):
    torch.manual_seed(0)
    q = torch.randn(7, 2, queries, 16).to(dtype)
    k, v = torch.randn(2, 7, 2, levels, 16).to(dtype)
    seen = torch.ones(queries, levels, dtype=torch.bool).tril(levels - queries)
    want = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=seen)
    within = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    torch.testing.assert_close(attend_levels(q, k, v).double(), want, rtol=within, atol=within)


def test_needs_the_codes_and_one_state(heads):
    with pytest.raises(ValueError, match="need the codes"):
        heads(torch.randn(2, D).double())
    valid = torch.ones(2, K, dtype=torch.bool)
    with pytest.raises(ValueError, match="one hidden state"):
        heads.loss(torch.randn(2, K, D).double(), torch.zeros(2, K, dtype=torch.long), valid)


def test_attention_compiles_for_any_number_of_levels():
    def attend(q):
        return attend_levels(q, q, q)

    compiled = torch.compile(attend, backend="eager", dynamic=True, fullgraph=True)
    for levels in (3, 5):
        q = torch.randn(4, 2, levels, 8)
        torch.testing.assert_close(compiled(q), attend(q))
