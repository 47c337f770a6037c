"""Context parallelism: devices share the tokens of a clip (Ulysses, arXiv 2309.14509).

Each of n devices holds S / n tokens in everything but self-attention. There they trade: every device gets
all S tokens of H / n heads, attends, and trades back. Each computes the whole loss, so the gradient of a
weight is the sum of what all devices found for their tokens. The collectives' own backward passes give n
times each part, and FSDP2 takes the mean over devices: together that is the sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def split(x: Tensor, group: ProcessGroup | None, dim: int = 1) -> Tensor:
    """This device's part of the tokens along ``dim``; all of them without a group.

    Raises:
        ValueError: they do not divide.
    """
    if group is None:
        return x
    if x.shape[dim] % group.size():
        raise ValueError(f"{x.shape[dim]} tokens do not divide by {group.size()} devices that share them.")
    return x.chunk(group.size(), dim)[group.rank()]


def split_runs(runs: list[int], group: ProcessGroup | None) -> list[int]:
    """How many tokens of each run lie in this device's part."""
    if group is None:
        return runs
    size = sum(runs) // group.size()
    low, start, mine = group.rank() * size, 0, []
    for run in runs:
        mine.append(max(0, min(start + run, low + size) - max(start, low)))
        start += run
    return mine


def gather(x: Tensor, group: ProcessGroup | None, dim: int = 1) -> Tensor:
    """All devices' tokens, in order."""
    if group is None:
        return x
    from torch.distributed import _functional_collectives as collectives

    # Before torch 2.14 only the second has a backward pass; from there on it has another name.
    all_gather = getattr(collectives, "all_gather_single", collectives.all_gather_tensor_autograd)
    return all_gather(x.contiguous(), dim, group)


def ulysses(attend, q: Tensor, k: Tensor, v: Tensor, group: ProcessGroup) -> Tensor:
    """``attend(q, k, v)`` over all tokens; q, k, v and the result are this device's, (B, H, S / n, d)."""
    n = group.size()
    if q.shape[1] % n:
        raise ValueError(f"{q.shape[1]} attention heads do not divide by {n} devices.")
    parts = (
        _trade(x.unflatten(1, (n, -1)).movedim(1, 0), group) for x in (q, k, v)
    )  # (n, B, H / n, S / n, d)
    out = attend(*(x.movedim(0, 2).flatten(2, 3) for x in parts))  # (B, H / n, S, d)
    return _trade(out.unflatten(2, (n, -1)).movedim(2, 0), group).movedim(0, 1).flatten(1, 2)


def _trade(x: Tensor, group: ProcessGroup) -> Tensor:
    """Part i of x goes to device i; part i of the result comes from it."""
    from torch.distributed._functional_collectives import all_to_all_single_autograd

    sizes = [1] * group.size()
    return torch.reshape(all_to_all_single_autograd(x.contiguous(), sizes, sizes, group), x.shape)
