"""Modules that stay and compute in float32 in a model of any precision.

In Wan these are the embedding of the timestep, its projections, and norms: diffusers loads them in float32
(``_keep_in_fp32_modules``), and Wan's own code asserts it. In bfloat16, t = 999 would become 1000.
"""

import torch
from torch import Tensor, nn


class Float32(nn.Module):
    """Mixin: ``.to(bfloat16)`` leaves the module's own parameters in float32."""

    def _apply(self, fn, recurse=True):
        before = {name: p.data for name, p in self.named_parameters(recurse=False)}
        super()._apply(fn, recurse)
        for name, p in self.named_parameters(recurse=False):
            if p.dtype in (torch.bfloat16, torch.float16):
                p.data = before[name].to(p.device, torch.float32)
        return self


class Float32Linear(Float32, nn.Linear):
    """A linear layer that computes in float32, under autocast too."""

    def forward(self, x: Tensor) -> Tensor:
        device = "cpu" if x.is_meta else x.device.type  # "meta" knows no autocast
        with torch.autocast(device, enabled=False):
            return super().forward(x.float())


class Float32LayerNorm(Float32, nn.LayerNorm):
    """LayerNorm computed in float32; the result has the input's dtype. Weights may come in another one: FSDP2
    gathers those of a block in one precision."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return nn.functional.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).type_as(x)
