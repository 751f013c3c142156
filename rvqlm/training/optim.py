"""Which optimizer has which parameters, and at which learning rate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rvqlm.errors import UserError
from rvqlm.modules import native_training
from rvqlm.modules.depth import DepthHeads
from rvqlm.modules.embeddings import SummedTables
from rvqlm.modules.native_training import Moments
from rvqlm.training.config import OptimConfig
from rvqlm.training.ema import EMA
from rvqlm.training.muon import Muon
from rvqlm.training.scaled_adam import ScaledAdam


class AdamW(torch.optim.AdamW):
    """torch's fused one; on a CPU in one pass with what is done before and after it."""

    def step_natively(self, factor: float, averages: dict[int, Tensor], share: float) -> None:
        """`step` with gradients times ``factor`` by `rvqlm.modules.native_training`.

        :param averages: of the weights, by their ids; they get that ``share`` of the new weights.
        """
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    moments = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
                    self.state[p] |= {"step": torch.zeros(()), **moments}
                self.state[p]["step"] += 1
            for kept in (True, False):  # of what is averaged, and the rest
                some = [p for p in params if (id(p) in averages) == kept]
                states = [self.state[p] for p in some]
                moments = Moments(
                    some, [p.grad for p in some],
                    [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states],
                    [averages[id(p)] for p in some] if kept else [],
                    [int(s["step"]) for s in states],
                )  # fmt: skip
                if some:
                    native_training.adamw(moments, group, factor, share)


class Optimizers:
    """One or more optimizers that step together.

    Each group of parameters has a peak learning rate of its own (``peak_lr``); the schedule gives
    the share of it.
    """

    def __init__(self, parts: list[torch.optim.Optimizer]):
        self.parts = parts
        self.params = [p for o in parts for g in o.param_groups for p in g["params"]]

    def set_factor(self, factor: float) -> None:
        """Every learning rate: its peak times `factor`."""
        for optimizer in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor

    @torch.no_grad()
    def step(self, factor: float = 1.0, ema: EMA | None = None) -> None:
        """A step with all gradients times ``factor``, and one of the average of the weights."""
        averages = {} if ema is None else dict(zip(map(id, ema.params), ema.average))
        share, done = 0.0 if ema is None else ema.next_share(), set()
        for optimizer in self.parts:
            params = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
            grads = [p.grad for p in params]
            if isinstance(optimizer, AdamW) and native_training.steps([*params, *grads]):
                optimizer.step_natively(factor, averages, share)
                done |= set(map(id, params))
            else:
                if grads:
                    torch._foreach_mul_(grads, factor)
                optimizer.step()
        if ema is not None:
            ema.update(share, but=done)

    def zero_grad(self) -> None:
        # None instead of zeros: the first backward then writes gradients instead of adding to them
        for p in self.params:
            p.grad = None

    def state_dict(self) -> list[dict]:
        return [o.state_dict() for o in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        """Moments and counts; learning rates, decay and the like stay those of the flags."""
        if len(states) != len(self.parts):
            raise UserError("the checkpoint was made with another --optimizer")
        for optimizer, state in zip(self.parts, states):
            mine = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
            try:
                optimizer.load_state_dict(state)
            except ValueError as e:
                raise UserError(
                    f"the checkpoint has other groups of parameters ({e}); give the same "
                    "--optimizer and --embedding-lr"
                ) from None
            for group, settings in zip(optimizer.param_groups, mine):
                group.update(settings)


def embedding_tables(model: nn.Module) -> set[int]:
    """Ids of the parameters that are looked up, not multiplied with."""
    tables: list[nn.Parameter] = []
    for module in model.modules():
        if isinstance(module, SummedTables):
            tables += [module.weight, *([module.level] if hasattr(module, "level") else [])]
        elif isinstance(module, DepthHeads):
            tables.append(module.tables)
        elif isinstance(module, nn.Embedding):
            tables.append(module.weight)
    return {id(p) for p in tables}


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizers:
    """Optimizers over all trainable parameters of `model`.

    Vectors and scalars get no weight decay, embeddings ``--embedding-lr`` where it is given. For
    muon, the model says which matrices are its hidden ones through ``muon_parameters()``.
    """
    c = config
    hidden: list[nn.Parameter] = []
    if c.optimizer == "muon":
        hidden = [p for p in model.muon_parameters() if p.requires_grad]
        if not hidden:
            raise UserError(
                f"--optimizer muon: model {model.name} names no hidden matrices; use adamw"
            )
    taken = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    tables = set() if c.embedding_lr is None else embedding_tables(model)
    looked_up = [p for p in rest if id(p) in tables]
    plain = [p for p in rest if id(p) not in tables]
    if c.embedding_lr is not None and not looked_up:
        raise UserError(
            f"--embedding-lr: model {model.name} trains no embedding tables; leave it out"
        )

    def group(params: list, lr: float, decay: float) -> dict:
        return {"params": params, "lr": lr, "peak_lr": lr, "weight_decay": decay}

    groups = [
        group([p for p in plain if p.ndim >= 2], c.base_lr, c.weight_decay),
        group([p for p in plain if p.ndim < 2], c.base_lr, 0.0),
        group([p for p in looked_up if p.ndim >= 2], c.embedding_lr or 0.0, c.weight_decay),
        group([p for p in looked_up if p.ndim < 2], c.embedding_lr or 0.0, 0.0),
    ]
    groups = [g for g in groups if g["params"]]
    parts: list[torch.optim.Optimizer] = []
    if hidden:
        muon = group(hidden, c.base_lr, c.weight_decay)
        parts.append(Muon([muon], c.base_lr, c.momentum, c.weight_decay))
    if groups and c.optimizer == "scaled_adam":
        for g in groups:
            del g["weight_decay"]
        parts.append(ScaledAdam(groups, c.base_lr, tuple(c.betas), c.eps))
    elif groups:
        parts.append(AdamW(groups, lr=c.base_lr, betas=tuple(c.betas), eps=c.eps, fused=True))
    return Optimizers(parts)
