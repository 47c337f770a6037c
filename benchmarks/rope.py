"""Rotary positions: ours against diffusers', both in real numbers.

diffusers writes even and odd channels one after the other, each with a stride, and autograd goes back through
every step. Ours swaps the two channels of each pair once, multiplies and adds without strides, and its
backward pass is the inverse rotation. The rows "one pass" time ``x * 2``, which reads and writes as much and
computes almost nothing: the minimum for any such operation.
"""

from unittest import mock

import torch
from _harness import Report, cpu_seconds, main
from diffusers.models.transformers import transformer_wan
from torch import Tensor, nn

from vera_lite.backbone import grid_positions, rotary_table, rotate

#: name: batch, token grid (t, h, w), heads, head width, dtype
SIZES = {
    "notebook B=16 S=48 H=4 d=32": (16, (3, 4, 4), 4, 32, torch.float32),
    "S=768 H=12 d=128": (1, (3, 16, 16), 12, 128, torch.float32),
    "S=768 H=12 d=128 bfloat16": (1, (3, 16, 16), 12, 128, torch.bfloat16),
    "S=6240 H=12 d=128": (1, (4, 30, 52), 12, 128, torch.float32),
}


def diffusers_rotate(x: Tensor, freqs_cos: Tensor, freqs_sin: Tensor) -> Tensor:
    """The lines that diffusers 0.42 nests in ``WanAttnProcessor.__call__``; x (B, S, H, d)."""
    x1, x2 = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = freqs_cos[..., 0::2], freqs_sin[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = x1 * cos - x2 * sin
    out[..., 1::2] = x1 * sin + x2 * cos
    return out.type_as(x)


def diffusers_query(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """What diffusers' own processor hands to attention as query, given x (B, S, H, d)."""
    heads, head_dim = x.shape[2:]
    processor = transformer_wan.WanAttnProcessor()
    attention = transformer_wan.WanAttention(heads * head_dim, heads, dim_head=head_dim, processor=processor)
    for name in ("to_q", "to_k", "to_v", "norm_q", "norm_k"):
        setattr(attention, name, nn.Identity())
    attention.to_out = nn.ModuleList([nn.Identity(), nn.Identity()])
    with mock.patch.object(
        transformer_wan, "dispatch_attention_fn", side_effect=lambda query, *_, **__: query
    ):
        return attention(x.flatten(2), x.flatten(2), None, tables).unflatten(-1, (heads, head_dim))


def measure_size(report: Report, rounds: int, name: str) -> None:
    """Fill in one size: forward, and forward with backward."""
    batch, grid, heads, head_dim, dtype = SIZES[name]
    t, h, w = grid
    x = torch.randn(batch, t * h * w, heads, head_dim, dtype=dtype).requires_grad_()
    gradient = torch.randn_like(x)
    side = 2 * (head_dim // 6)
    table = rotary_table(grid_positions(grid), (head_dim - 2 * side, side, side))
    # Both take their tables as given: they are built once and serve every layer.
    tables = transformer_wan.WanRotaryPosEmbed(head_dim, (1, 1, 1), 64)(torch.empty(1, 1, t, h, w))
    functions = {
        "ours": lambda: rotate(x, table),
        "diffusers": lambda: diffusers_rotate(x, *tables),
        "one pass": lambda: x * 2,
    }

    def with_backward(function):
        def run():
            x.grad = None
            function().backward(gradient)
            return x.grad

        return run

    backward = {key: with_backward(f) for key, f in functions.items()}
    with torch.no_grad():
        theirs = functions["diffusers"]()
        assert torch.equal(theirs, diffusers_query(x, tables))
        torch.testing.assert_close(functions["ours"](), theirs)
        forward = cpu_seconds(functions, rounds)
    # In bfloat16 diffusers' gradient is rounded once a term, ours once.
    tolerance = {} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.02}
    torch.testing.assert_close(backward["ours"](), backward["diffusers"](), **tolerance)
    # A training step runs both ways; forward alone is what sampling pays.
    report.add_times(f"{name} forward", forward, "ours", "diffusers")
    both = cpu_seconds(backward, rounds)
    report.add_times(f"{name} forward+backward", both, "ours", "diffusers", "<= 0.4")
    report.add_times(f"{name} forward+backward", both, "ours", "one pass")


def measure(report: Report, rounds: int) -> None:
    """Fill the report, one size after the other."""
    for name in SIZES:
        measure_size(report, rounds, name)


if __name__ == "__main__":
    main("rope", measure, rounds=9)
