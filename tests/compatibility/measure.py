"""What a model computes on stored tokens: with the code that wrote its file, and with today's.

Imports only what commit 99ec0c2 has under the same names.
"""

from __future__ import annotations

import hashlib

import torch

from rvqlm.data.conditions import ConditionSet
from rvqlm.data.index import TokenDataset
from rvqlm.data.loader import TokenLoader
from rvqlm.data.plan import PlanConfig

PROMPT_FRAMES, SEED = 10, 3  # of the condition `prompt`


def digest(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 of all names, types, shapes and values."""
    found = hashlib.sha256()
    for name, value in sorted(weights.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def measure(model, tokens: str = "tokens") -> dict:
    """Weights, nats per level of the test split in one batch, and the likeliest codes that follow
    each of its first frames.

    :param model: as `rvqlm.from_pretrained` returns it.
    :param tokens: token directory.
    """
    dataset = TokenDataset.open(tokens, "test", num_codebooks=model.info.num_codebooks)
    conditions = ConditionSet.open(
        dataset, list(model.conditions), prompt_frames=PROMPT_FRAMES, seed=SEED
    )
    loader = TokenLoader(dataset, PlanConfig(max_duration=60), seed=SEED, conditions=conditions)
    (batch,) = loader.epoch_batches()
    with torch.no_grad():
        out = model(batch)
    made = model.generate(
        batch.codes[:, :4], max_new_frames=6, min_frames=10, temperature=0,
        conditions=batch.conditions,
    )  # fmt: skip
    return {
        "weights": digest(model.state_dict()),
        "nats": out.nats.tolist(),
        "count": out.count.tolist(),
        "codes": made.codes.tolist(),
    }
