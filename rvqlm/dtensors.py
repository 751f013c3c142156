"""What an optimizer needs of sharded tensors (DTensor, of FSDP2): parts, totals, whole matrices.

Every function takes ordinary tensors as well, for which there is nothing to do, and every rank
makes the same calls in the same order: batches are formed by what all ranks know.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator

import torch
from torch import Tensor

MAX_ELEMENTS = 2**24
"""Of one batch: enough to fill a GPU, and little beside the memory of the parameters."""


def is_sharded(tensor: Tensor) -> bool:
    # by attribute: importing DTensor costs half a second, and only torchrun's ranks have any
    return hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """This rank's part, of the same memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def batches(
    params: Iterable[Tensor], key: Callable[[Tensor], Hashable] = lambda p: None
) -> Iterator[list[Tensor]]:
    """Parameters that have gradients, by shape, layout and `key`, in batches of `MAX_ELEMENTS`."""
    found: dict[Hashable, list[Tensor]] = {}
    for p in params:
        if p.grad is not None:
            layout = (p.device_mesh, p.placements) if is_sharded(p) else p.device
            found.setdefault((p.shape, layout, key(p)), []).append(p)
    for alike in found.values():
        size = max(1, MAX_ELEMENTS // max(1, alike[0].numel()))
        yield from (alike[n : n + size] for n in range(0, len(alike), size))


def total(sums: Tensor, like: Tensor) -> Tensor:
    """Sums over this rank's parts of tensors laid out as `like` -> sums over the whole."""
    if not is_sharded(like):
        return sums
    from torch.distributed.tensor import DTensor, Partial, Replicate

    parts = [Partial() if p.is_shard() else Replicate() for p in like.placements]
    return DTensor.from_local(sums, like.device_mesh, parts, run_check=False).full_tensor()


def whole(stack: Tensor, like: Tensor) -> Tensor:
    """Parts (n, ...) of n tensors laid out as `like` -> the tensors (n, \\*like.shape), by one
    exchange."""
    if not is_sharded(like):
        return stack
    from torch.distributed.tensor import DTensor

    size = torch.empty(len(stack), *like.shape, device="meta")
    # the size, for parts may be unequal
    return DTensor.from_local(
        stack, like.device_mesh, _shifted(like), run_check=False,
        shape=size.shape, stride=size.stride(),
    ).full_tensor()  # fmt: skip


def own(stack: Tensor, like: Tensor) -> Tensor:
    """The inverse of `whole`, without exchange."""
    if not is_sharded(like):
        return stack
    from torch.distributed.tensor import DTensor, Replicate

    same = [Replicate()] * like.device_mesh.ndim
    everywhere = DTensor.from_local(stack, like.device_mesh, same, run_check=False)
    return everywhere.redistribute(placements=_shifted(like)).to_local()


def _shifted(like: Tensor) -> list:
    """Layout of a stack of tensors laid out as `like`."""
    from torch.distributed.tensor import Shard

    return [Shard(p.dim + 1) if p.is_shard() else p for p in like.placements]
