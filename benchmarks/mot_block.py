"""A Mixture-of-Transformers block against diffusers' dense Wan block on the same 3S tokens.

Ours has three plain Wan blocks and runs three branches of S tokens, joined in self-attention. diffusers'
``WanTransformerBlock`` has one set of weights and runs all 3S tokens through it. The matrix products have the
same total size, but ours are three where theirs is one.

In the rows "loop" the peer does the same work: three diffusers blocks that meet in one attention.
"""

import torch
from _harness import Report, cpu_seconds, main
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor
from torch.nn import functional as F

from vera_lite.backbone import WanConfig, grid_positions, rotary_table, rotate
from vera_lite.systems import VeraConfig
from vera_lite.systems.vera import JointBlock

BRANCHES = 3
#: name: batch, token grid of a branch, heads, head width, feed-forward width / D, text tokens
SIZES = {
    "notebook D=128 S=48 B=1": (1, (3, 4, 4), 4, 32, 3, 12),
    "notebook D=128 S=48 B=16": (16, (3, 4, 4), 4, 32, 3, 12),
    "D=384 S=768 B=1": (1, (3, 16, 16), 6, 64, 4, 64),
    "D=768 S=384 B=1": (1, (3, 8, 16), 12, 64, 4, 64),
}


def copy_weights(ours: JointBlock, theirs: list[WanTransformerBlock]) -> None:
    """Give each diffusers block the weights of one branch; shared ones are the first branch's."""
    shared = ours.branches[0].state_dict()
    for branch, block in zip(ours.branches, theirs, strict=True):
        block.load_state_dict(shared | branch.state_dict())


def loop(blocks: list[WanTransformerBlock], x: Tensor, text: Tensor, time: Tensor, table: Tensor):
    """The same block as a loop: x (N, B, S, D), text (B, T, D), time (B, 6, D) -> (N, B, S, D)."""
    heads = blocks[0].attn1.heads
    modulation = [(b.scale_shift_table + time).chunk(6, dim=1) for b in blocks]
    q, k, v = [], [], []
    for block, h, (shift, scale, *_) in zip(blocks, x, modulation, strict=True):
        normed, attention = block.norm1(h) * (1 + scale) + shift, block.attn1
        q.append(attention.norm_q(attention.to_q(normed)).unflatten(-1, (heads, -1)))
        k.append(attention.norm_k(attention.to_k(normed)).unflatten(-1, (heads, -1)))
        v.append(attention.to_v(normed).unflatten(-1, (heads, -1)))
    q, k = ([rotate(y, table) for y in z] for z in (q, k))
    q, k, v = (torch.cat(y, dim=1).transpose(1, 2) for y in (q, k, v))  # (B, H, NS, d)
    joint = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    out = []
    for block, h, attended, (_, _, gate, shift, scale, ffn_gate) in zip(
        blocks, x, joint.chunk(len(blocks), dim=1), modulation, strict=True
    ):
        mixed = h + gate * block.attn1.to_out[0](attended)
        read = mixed + block.attn2(block.norm2(mixed), text, None, None)
        out.append(read + ffn_gate * block.ffn(block.norm3(read) * (1 + scale) + shift))
    return torch.stack(out)


def with_backward(function, parameters: list[Tensor]):
    """``function`` and its backward pass, starting without gradients, as in a training step."""

    def run():
        for parameter in parameters:
            parameter.grad = None
        # Ones, because attention refuses the gradient of ``sum``, which has stride zero.
        out = function()
        out.backward(torch.ones_like(out))

    return run


def measure_size(report: Report, rounds: int, name: str) -> None:
    """Fill in one size: forward, and forward with backward."""
    batch, grid, heads, head_dim, widening, text_tokens = SIZES[name]
    dim = heads * head_dim
    config = WanConfig(num_attention_heads=heads, attention_head_dim=head_dim, ffn_dim=widening * dim)
    # Text keys and values are shared, as Vera shares them: the dense block projects them once.
    ours = JointBlock(VeraConfig(backbone=config))
    theirs = [WanTransformerBlock(dim, config.ffn_dim, heads, cross_attn_norm=True) for _ in range(BRANCHES)]
    copy_weights(ours, theirs)

    tokens = grid[0] * grid[1] * grid[2]
    x = torch.randn(BRANCHES, batch, tokens, dim, requires_grad=True)
    dense_x = torch.randn(batch, BRANCHES * tokens, dim, requires_grad=True)
    text = torch.randn(batch, text_tokens, dim)
    time = torch.randn(batch, 6, dim)
    table = rotary_table(grid_positions(grid), config.rotary_widths)
    cos, sin = table.repeat(1, BRANCHES, 1)[:, None, :, None]
    dense_rotary = cos, sin[..., 1::2].repeat_interleave(2, -1)  # theirs carry no sign

    functions = {
        "ours": lambda: torch.stack(ours(list(x), [text], [time[:, None]], table)),
        "diffusers": lambda: theirs[0](dense_x, text, time, dense_rotary),
        "loop": lambda: loop(theirs, x, text, time, table),
    }
    parameters = [x, dense_x, *ours.parameters(), *(p for b in theirs for p in b.parameters())]
    with torch.no_grad():
        torch.testing.assert_close(functions["ours"](), functions["loop"](), atol=1e-4, rtol=1e-4)
        forward = cpu_seconds(functions, rounds)
    backward = {key: with_backward(f, parameters) for key, f in functions.items()}
    for kind, seconds in (
        ("forward", forward),
        ("forward+backward", cpu_seconds(backward, rounds)),
    ):
        report.add_times(f"{name} {kind}", seconds, "ours", "loop", "<= 1.10")
        report.add_times(f"{name} {kind}, one set of weights", seconds, "ours", "diffusers")


def measure(report: Report, rounds: int) -> None:
    """Fill the report, one size after the other."""
    for name in SIZES:
        measure_size(report, rounds, name)


if __name__ == "__main__":
    main("mot_block", measure, rounds=5)
