"""AdamW, with Muon for the matrices inside blocks, and the schedule of both."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn


class BatchedMuon(torch.optim.Muon):
    """``torch.optim.Muon`` that orthogonalises up to eight matrices of one shape at once. For width 128 this
    takes half the time on a CPU; more matrices do not fit into its caches."""

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    if not self.state[p]:
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                    momentum = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                    by_shape[p.shape].append((p, p.grad.lerp(momentum, group["momentum"])))  # Nesterov
            for (rows, columns), pairs in by_shape.items():
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for start in range(0, len(pairs), 8):
                    params, updates = zip(*pairs[start : start + 8], strict=True)
                    updates = orthogonalise(torch.stack(updates), group["ns_coefficients"], group["ns_steps"])
                    for p, update in zip(params, updates.type_as(params[0]), strict=True):
                        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


def orthogonalise(matrices: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Push all singular values of matrices (B, m, n) towards 1 by Newton-Schulz iteration, in bfloat16."""
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.mT  # x <- (a + b g + c g^2) x
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Muon and ``torch.optim.AdamW`` as one optimizer for Lightning.

    Args:
        muon: parameter groups of matrices.
        adamw: parameter groups of everything else.
    """

    def __init__(self, muon: list[dict], adamw: list[dict]):
        self.parts = (BatchedMuon(muon), torch.optim.AdamW(adamw))
        super().__init__([p for part in self.parts for g in part.param_groups for p in g["params"]], {})
        self._link()

    def _link(self) -> None:
        # The parts own groups and state; schedules change the same group objects.
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self.state = {p: s for part in self.parts for p, s in part.state.items()}

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._link()


def build_optimizer(
    model: nn.Module,
    lr: float,
    muon_lr: float | None,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.97),
) -> torch.optim.Optimizer:
    """AdamW for all parameters or, with ``muon_lr``, Muon for the matrices inside blocks.

    Embeddings, heads, tables, adapters and connectors stay with AdamW. Muon steps equally far in all
    directions, and nothing normalises a connector's output: with Muon, all units of the GELU in the toy
    RVEDiT's connector became negative, and its output constant.

    Raises:
        ValueError: Muon's matrices are sharded (FSDP2); it needs them whole.
    """
    matrices = []
    if muon_lr is not None:
        for name, module in model.named_modules():
            inside = any(part.endswith(("blocks", "layers")) for part in name.split("."))
            if inside and isinstance(module, nn.Linear) and module.weight.requires_grad:
                matrices.append(module.weight)
        if any(isinstance(p, torch.distributed.tensor.DTensor) for p in matrices):
            raise ValueError("Muon needs whole matrices: set muon_lr to null when weights are sharded.")
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    adamw = {"params": rest, "lr": lr, "betas": tuple(betas), "weight_decay": weight_decay}
    if not matrices:
        return torch.optim.AdamW([adamw])
    return MuonAdamW([{"params": matrices, "lr": muon_lr, "weight_decay": 0.0}], [adamw])


def scheduled(
    optimizer: torch.optim.Optimizer, steps: int, warmup_steps: int, decay_from: float, decay: str = "linear"
) -> dict:
    """An optimizer with warm-up, a constant rate and, after the share ``decay_from`` of ``steps``, a fall to
    zero ("linear" or "cosine"), in the form that Lightning takes.

    Raises:
        ValueError: ``steps`` is not set.
    """
    from transformers import get_wsd_schedule  # takes a second

    if steps < 1:
        raise ValueError("set trainer.max_steps: schedules and data order are tied to steps.")
    falling = round(steps * (1 - decay_from))
    schedule = get_wsd_schedule(
        optimizer,
        num_warmup_steps=warmup_steps,
        num_stable_steps=max(0, steps - falling - warmup_steps),
        num_decay_steps=min(falling, steps - warmup_steps),
        decay_type=decay,
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
