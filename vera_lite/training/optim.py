"""Muon for stacked matrices, AdamW for the rest, as one optimizer."""

import math
from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from vera_lite.backbone.wan import StackedLinear
from vera_lite.errors import UserError

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic of Jordan et al., steep at zero


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Push all singular values of matrices (B, m, n) towards 1 by Newton-Schulz iteration.

    In bfloat16, as ``torch.optim.Muon``: the result only has to be roughly orthogonal.
    """
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(steps):
        gram = x @ x.mT  # x <- (a + b g + c g^2) x
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """Muon (K. Jordan, 2024) on groups with ``muon=True``, AdamW on the others.

    ``torch.optim.Muon`` takes 2-D parameters only and would need a second optimizer beside it. Here
    every leading axis of a parameter counts matrices, so that a stacked weight (E, out, in) is E
    matrices, and matrices of one size are orthogonalised in one batched call.

    Args:
        groups: parameter groups with ``params``, ``lr``, ``muon`` and, for Muon, ``momentum``, else
            ``betas``; ``weight_decay`` for both.

    Raises:
        UserError: a Muon parameter is sharded (FSDP2): orthogonalising needs whole matrices. Use
            AdamW there.
    """

    def __init__(self, groups: list[dict]):
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0, "momentum": 0.95, "betas": (0.9, 0.97)})
        for group in self.param_groups:
            if group["muon"] and any(
                isinstance(p, torch.distributed.tensor.DTensor) for p in group["params"]
            ):
                raise UserError("Muon needs whole matrices: set muon_lr to null when weights are sharded.")

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._muon if group["muon"] else self._adamw)(group, params)
        return loss

    def _muon(self, group: dict, params: list[Tensor]) -> None:
        by_size = defaultdict(list)
        for p in params:
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
            update = p.grad.lerp(state["momentum_buffer"], group["momentum"])  # Nesterov
            by_size[p.shape[-2:]].append((p, update))
        for (rows, columns), pairs in by_size.items():
            stacked = torch.cat([u.reshape(-1, rows, columns) for _, u in pairs])
            scale = max(1.0, rows / columns) ** 0.5
            for (p, u), o in zip(
                pairs,
                orthogonalise(stacked).split([u.numel() // (rows * columns) for _, u in pairs]),
                strict=True,
            ):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(o.view_as(u), alpha=-group["lr"] * scale)

    def _adamw(self, group: dict, params: list[Tensor]) -> None:
        for p in params:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        states = [self.state[p] for p in params]
        adamw(
            params,
            [p.grad for p in params],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            foreach=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


def parameter_groups(model: nn.Module, lr: float, muon_lr: float | None, weight_decay: float) -> list[dict]:
    """Muon for the matrices inside blocks, AdamW for everything else (embeddings, heads, tables, adapters).

    Connectors are not among the first: nothing normalises what they put out, and under Muon's even steps the
    toy RVEDiT's went silent, all units of its GELU negative.
    """
    muon = []
    if muon_lr is not None:
        for name, module in model.named_modules():
            inside = any(part.endswith(("blocks", "layers")) for part in name.split("."))
            if inside and isinstance(module, (StackedLinear, nn.Linear)) and module.weight.requires_grad:
                muon.append(module.weight)
    taken = set(map(id, muon))
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    groups = [{"params": rest, "lr": lr, "muon": False, "weight_decay": weight_decay}]
    if muon:
        groups.append({"params": muon, "lr": muon_lr, "muon": True, "weight_decay": 0.0})
    return groups


def scheduled(groups: list[dict], steps: int, warmup_steps: int, decay_from: float) -> dict:
    """The optimizer with linear warm-up and, after the share ``decay_from`` of ``steps``, a linear fall
    to zero, in the form that Lightning takes.

    Raises:
        UserError: ``steps`` is not set.
    """
    if steps < 1:
        raise UserError("set trainer.max_steps: schedules and data order are tied to steps.")
    decay = max(1, math.ceil(steps * (1 - decay_from)))

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / (warmup_steps + 1), max(0.0, (steps - step) / decay))

    optimizer = MuonAdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
