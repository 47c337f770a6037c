"""Attention of a training step on a CPU: two matrix products against PyTorch's fused kernel.

    python benchmarks/attention_training.py --json benchmarks/results/attention_training.json

Forward and backward in bfloat16, 16 clips of 576 tokens, as in a toy Vera of three branches. "float32" is the
fused kernel on float32, which autocast would not choose.
"""

from collections.abc import Callable

import torch
from _harness import Report, cpu_seconds, main
from torch import Tensor
from torch.nn import functional as F

from vera_lite.training.module import attention_by_products

#: Heads and their width.
SIZES = ((4, 32), (2, 64))


def trained(heads: int, width: int, dtype: torch.dtype, products: bool) -> Callable[[], object]:
    """Forward and backward of one attention."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(16, 576, heads, width, generator=generator) for _ in range(4)]
    q, k, v, gradient = (x.to(dtype).transpose(1, 2) for x in made)
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]

    def attend() -> Tensor:
        if not products:
            return F.scaled_dot_product_attention(*inputs)
        with torch.autocast("cpu", torch.bfloat16), attention_by_products():
            return F.scaled_dot_product_attention(*inputs)

    return lambda: torch.autograd.grad(attend(), inputs, gradient)


def measure(report: Report, rounds: int) -> None:
    """Fill the report."""
    for heads, width in SIZES:
        sides = {
            "products": trained(heads, width, torch.bfloat16, True),
            "fused": trained(heads, width, torch.bfloat16, False),
            "fused, float32": trained(heads, width, torch.float32, False),
        }
        seconds = cpu_seconds(sides, rounds)
        case = f"{heads} heads of {width}, forward and backward"
        report.add_times(case, seconds, "products", "fused", "<= 1.00")
        report.add_times(f"{case}: float32", seconds, "products", "fused, float32")


if __name__ == "__main__":
    main("attention_training", measure, rounds=7)
