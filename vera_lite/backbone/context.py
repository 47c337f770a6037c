"""Context parallelism: devices share the tokens of a clip (Ulysses, arXiv 2309.14509).

Each of n devices holds its part of the tokens in everything but self-attention. There they trade: every
device gets all tokens of H / n heads, attends, and trades back. The number of tokens need not divide by n,
the number of heads must.

A system cuts its sequence with :func:`split` before its blocks and joins it with :func:`gather` after them.
Between the two, self-attention calls :func:`ulysses`. Rotary tables stay whole: they tell it how many tokens
there are in all.

Each device computes the whole loss, so the gradient of a weight is the sum of what all devices found for
their tokens. The collectives' own backward passes give n times each part, and FSDP2 takes the mean over
devices: together that is the sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def part_sizes(tokens: int, group: ProcessGroup) -> list[int]:
    """How many of the tokens each device holds; the first ones hold one more if they do not divide."""
    n = group.size()
    return [tokens // n + (rank < tokens % n) for rank in range(n)]


def split(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """This device's part of the tokens, which lie along axis 1; all of them without a group."""
    return x if group is None else x.split(part_sizes(x.shape[1], group), 1)[group.rank()]


def split_runs(runs: list[int], group: ProcessGroup | None) -> list[int]:
    """How many tokens of each run lie in this device's part."""
    if group is None:
        return runs
    sizes = part_sizes(sum(runs), group)
    low = sum(sizes[: group.rank()])
    high, start, mine = low + sizes[group.rank()], 0, []
    for run in runs:
        mine.append(max(0, min(start + run, high) - max(start, low)))
        start += run
    return mine


def split_streams(streams: list[Tensor], group: ProcessGroup | None) -> list[Tensor]:
    """This device's part of a sequence of streams (B, S_k, D), as streams; some may be empty."""
    if group is None:
        return streams
    mine = split_runs([x.shape[1] for x in streams], group)
    return list(split(torch.cat(streams, 1), group).split(mine, 1))


def gather(x: Tensor, tokens: int, group: ProcessGroup | None) -> Tensor:
    """All devices' parts (B, S_i, D) of so many tokens, in order: (B, tokens, D)."""
    if group is None:
        return x
    sizes = part_sizes(tokens, group)
    sent = x.transpose(0, 1).expand(group.size(), -1, -1, -1)  # the same to every device
    return _trade(sent.flatten(0, 1), [x.shape[1]] * group.size(), sizes, group).transpose(0, 1)


def ulysses(
    attend, q: Tensor, k: Tensor, v: Tensor, tokens: int, group: ProcessGroup | None, streams: int = 1
) -> Tensor:
    """``attend(q, k, v)`` over all tokens.

    Args:
        attend: attention of queries, keys and values (B, heads, S, d).
        q, k, v: of this device's tokens, (B, H, S_i, d).
        tokens: S, of all devices.
        group: those that share them; None: nobody does.
        streams: how many sequences of so many tokens stand one after the other, each of them split. Then
            ``attend`` gets their tokens device by device, not sequence by sequence.

    Returns:
        (B, H, S_i, d).

    Raises:
        ValueError: the heads do not divide by the devices.
    """
    if group is None:
        return attend(q, k, v)
    n = group.size()
    if q.shape[1] % n:
        raise ValueError(f"{q.shape[1]} attention heads do not divide by {n} devices.")
    all_sizes, own_sizes = [streams * size for size in part_sizes(tokens, group)], [q.shape[2]] * n

    def trade(x: Tensor) -> Tensor:  # (B, H, S_i, d) -> (B, H / n, S, d)
        sent = x.unflatten(1, (n, -1)).permute(1, 3, 0, 2, 4).flatten(0, 1)  # (n S_i, B, H / n, d)
        return _trade(sent, own_sizes, all_sizes, group).permute(1, 2, 0, 3)

    attended = attend(trade(q), trade(k), trade(v)).permute(2, 0, 1, 3)  # (S, B, H / n, d)
    back = _trade(attended, all_sizes, own_sizes, group).unflatten(0, (n, -1))
    return back.permute(2, 0, 3, 1, 4).flatten(1, 2)


def _trade(x: Tensor, sent: list[int], received: list[int], group: ProcessGroup) -> Tensor:
    """Send rows of x to each device, so many as ``sent`` says, and return the rows that come from each."""
    from torch.distributed._functional_collectives import all_to_all_single_autograd

    out = all_to_all_single_autograd(x.contiguous(), received, sent, group)
    return torch.reshape(out, (sum(received), *x.shape[1:]))
