"""Toy models of the AR + NAR family, and their losses computed by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.generation.sampling import SamplingConfig
from rvqlm.models.valle import Valle, ValleConfig

K, V = 4, 11
INFO = CodecInfo("toy", "0" * 16, 16000, 320, K, V)
TEXT = {"text": ConditionInfo("text", (9,), rate=1.7)}
GREEDY = SamplingConfig(temperature=0)
OPTIONS = {
    "plain": {},
    "add_prenet": {"add_prenet": True},
    "prepend_bos": {"prepend_bos": True},
    "share_embedding": {"share_embedding": True},
    "nar_scale_factor": {"nar_scale_factor": 0.5},
    "num_nar_layers": {"num_nar_layers": 1},
    "post_norm": {"norm_first": False},
    "endless": {"model_end": False},
}


def make(shake=True, conditions=(), infos=TEXT, **changes):
    torch.manual_seed(0)
    shape = {"decoder_dim": 32, "nhead": 2, "num_decoder_layers": 2, "conditions": conditions}
    model = Valle(ValleConfig(**shape | changes), INFO, infos)
    if shake:  # heads and residual branches start at zero
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.2)
    return model.eval()


def random_items(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(V, (n, K), generator=generator) for n in lengths]


def texts(number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(9, (3 + i % 3,), generator=generator) for i in range(number)]


def coarse_logits(model, codes, prompt, frame):
    """(V,) of level 0 of a frame >= prompt and the end's logit, from a sequence built by hand."""
    columns = [[V] * K]
    columns += [codes[t].tolist() for t in range(prompt)]
    if model.config.prepend_bos:
        columns.append([V + 1] * K)
    columns += [[int(codes[t, 0])] + [V] * (K - 1) for t in range(prompt, frame)]
    hidden = model.ar.network(model.ar.inputs(torch.tensor([columns])))[0, -1]
    end = model.ar.end_head(hidden) if model.ar.end_head is not None else None
    return F.linear(hidden, model.ar.heads.weight[0]), end


def fine_logits(model, codes, known, level):
    """(T, V) of a level of all frames, from a grid built by hand."""
    grid = torch.full((1, len(codes), K), V)
    for t in range(len(codes)):
        visible = K if known[t] else level
        grid[0, t, :visible] = codes[t, :visible]
    condition = model.nar.level.weight[level - 1 : level]
    hidden = model.nar.network(model.nar.inputs(grid), condition=condition)[0]
    return F.linear(hidden, model.nar.heads.classifiers[level - 1])


@torch.no_grad()
def naive(model, codes, prompt):
    """nats (K,) and nats of the end decisions of one item."""
    T, nats, ends = len(codes), torch.zeros(K), torch.zeros(())
    for t in range(prompt, T + 1):
        logits, end = coarse_logits(model, codes, prompt, t)
        if t < T:
            nats[0] += F.cross_entropy(logits, codes[t, 0])
        ends -= F.logsigmoid(end if t == T else -end)
    for level in range(1, K):
        logits = fine_logits(model, codes, [t < prompt for t in range(T)], level)
        nats[level] = F.cross_entropy(logits[prompt:], codes[prompt:, level], reduction="sum")
    return nats, ends
