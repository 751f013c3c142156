"""Several sequences in a row: the losses and gradients of a padded batch, and no look across."""

import pytest
import torch
from families import CONDITIONS as INFOS
from families import PAIRWISE, random_batch
from families import make as make_case

from rvqlm.batch import Batch, Padded
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError
from rvqlm.models.factory import build_model, model_entry
from rvqlm.modules import attention
from rvqlm.modules.attention import attend
from rvqlm.modules.conditioning import ConditionedTransformer
from rvqlm.modules.documents import Documents
from rvqlm.modules.transformer import TransformerConfig

INFO = CodecInfo("demo", "", 16000, 320, num_codebooks=3, codebook_size=12)
LENGTHS = [7, 2, 5, 1, 9, 3]
ROWS = [0, 0, 0, 1, 1, 1]
CASES = [
    *(("codec-lm", {"pattern": p}) for p in ("delay", "parallel", "flatten", "coarse_first")),
    *(("codec-lm", {"pattern": "parallel", "model_end": False}), ("codec-lm", {"code_dropout": 0})),
    ("codec-lm", {"pattern": "parallel", "head": "depth", "depth_dim": 16}),
    *(("masked", {}), ("masked", {"masking": "coarse_first"}), ("masked", {"ar_share": 0.3})),
    *(("valle", {}), ("valle", {"prepend_bos": True, "model_end": False})),
]


def make(name: str, flags: dict):
    torch.manual_seed(0)
    config = model_entry(name)[0](decoder_dim=16, nhead=2, num_decoder_layers=2, **flags)
    model = build_model(name, config, INFO, {})
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn_like(p)
    return model.train()


def in_rows(padded: Batch) -> Batch:
    rows = torch.tensor([ROWS, LENGTHS]).T
    return Batch(**vars(padded) | {"rows": rows, "row_frames": 14})


def batches() -> tuple[Batch, Batch]:
    torch.manual_seed(1)
    padded = Batch.from_codes([torch.randint(12, (n, 3)) for n in LENGTHS])
    return padded, in_rows(padded)


def step(model, batch):
    torch.manual_seed(2)
    model.zero_grad()
    out = model(batch)
    out.loss.backward()
    return out, [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(("name", "flags"), CASES)
def test_losses_and_gradients_are_those_of_a_padded_batch(name, flags):
    model = make(name, flags)
    check_alike(model, *batches())


def check_alike(model, padded: Batch, packed: Batch) -> None:
    (padded, of_padded), (packed, of_packed) = (step(model, batch) for batch in (padded, packed))
    torch.testing.assert_close(packed.loss, padded.loss, rtol=1e-5, atol=0)
    assert packed.sums.keys() == padded.sums.keys()
    for metric, pair in padded.sums.items():
        for mine, theirs in zip(packed.sums[metric], pair):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(of_packed, of_padded):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert float((mine - theirs).norm()) <= 1e-5 * float(theirs.norm()) + 1e-6


@pytest.mark.parametrize("case", [c for c, (_, flags) in PAIRWISE.items() if "conditions" in flags])
@pytest.mark.parametrize("masked", [True, False])
def test_so_they_are_with_conditions(case, masked, monkeypatch):
    """Of which items lack some and are trained without others, the same in both."""
    if masked:  # what a GPU computes
        monkeypatch.setattr(attention, "MASKS_IN_BLOCKS", ())
    model = make_case(case, condition_dropout=0.4).train()
    padded = random_batch(model, LENGTHS)
    check_alike(model, padded, in_rows(padded))


def context_of(network, lengths):
    torch.manual_seed(1)
    texts = [None if n == 0 else torch.randint(9, (n, 1)) for n in lengths]
    given = {"text": Padded.of(texts, 1), "midi": Padded.of([None] * len(lengths), 6)}
    dropped = torch.arange(len(lengths)) == 2
    context = network.encode_conditions(given, len(lengths), drop=dropped)
    return given, context._replace(x=context.x.detach().requires_grad_())


@pytest.mark.parametrize("fusion", ["prefix", "cross", "spread"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_no_sequence_sees_what_another_is_given(fusion, causal, masked, monkeypatch):
    if masked:
        monkeypatch.setattr(attention, "MASKS_IN_BLOCKS", ())
    torch.manual_seed(0)
    infos = {kind: INFOS[kind] for kind in ("text", "midi")}
    network = ConditionedTransformer(TransformerConfig(16, 2, 2, 32, causal=causal), infos, fusion)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.3)
    given, context = context_of(network, [3, 2, 4, 0, 1, 5])
    padded, packed = batches()
    packed.conditions = given
    documents = network.documents(packed, packed.rows, size=9)
    x = torch.randn(6, 9, 16)
    valid = torch.arange(9) < padded.lengths[:, None]
    given = []
    network.transformer.register_forward_pre_hook(
        lambda module, args, how: given.append(how["key_mask"]), with_kwargs=True
    )
    y = network(x, context, documents=documents)
    if fusion != "cross":  # each query must see something
        assert not documents.real.all()
        assert given[0][~documents.real].all()
    torch.testing.assert_close(y[valid], network(x, context, valid)[valid], rtol=1e-5, atol=1e-5)
    for item, steps in enumerate(LENGTHS):
        (grad,) = torch.autograd.grad(y[item, steps - 1].sum(), context.x, retain_graph=True)
        seen = torch.zeros_like(context.mask)
        seen[item] = context.mask[item]
        assert torch.equal((grad != 0).any(-1), seen)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_no_sequence_sees_another(causal, masked, monkeypatch):
    docs = Documents(torch.tensor([ROWS, LENGTHS]).T, size=9)
    q, k, v = torch.randn(3, 2, 2, 14, 4, dtype=torch.float64).requires_grad_().unbind(0)
    q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
    if masked:  # what a GPU computes
        monkeypatch.setattr(attention, "MASKS_IN_BLOCKS", ())
        y = attend(q, k, v, bias=docs.bias(causal, q.dtype))
    else:
        y = docs.attend(q, k, v, causal, 0.0)
    for row, column in ((0, 8), (1, 0), (1, 5)):
        grads = torch.autograd.grad(y[row, :, column].sum(), (k, v), retain_graph=True)
        same = docs.number == docs.number[row, column]
        same[1 - row] = False
        if causal:
            same[row, column + 1 :] = False
        for grad in grads:
            assert not grad.transpose(1, 2)[~same].any()
        assert (grads[1].transpose(1, 2)[same] != 0).all()


def test_both_ways_of_attention_agree(monkeypatch):
    monkeypatch.setattr(attention, "MASKS_IN_BLOCKS", ())
    docs = Documents(torch.tensor([[0, 4], [1, 2], [1, 1]]), size=4)
    q, k, v = torch.randn(3, 2, 2, 4, 4, dtype=torch.float64)
    for causal in (True, False):
        other = attend(q, k, v, bias=docs.bias(causal, q.dtype))
        torch.testing.assert_close(docs.attend(q, k, v, causal, 0.0), other)


def test_what_cannot_be_packed_is_refused():
    shape = {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 1, "conditions": ("text",)}
    infos = {"text": ConditionInfo("text", (5,), rate=2.0)}
    model = build_model("recognizer", model_entry("recognizer")[0](**shape), INFO, infos)
    with pytest.raises(UserError, match="--packing: recognizer has no rows of several cuts"):
        model.documents(None, batches()[1], 1, 0, 9)
