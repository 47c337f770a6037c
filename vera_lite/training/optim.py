"""AdamW, with Muon for the matrices inside blocks, and the schedule of both."""

from typing import Any

import torch
from torch import nn


class MuonAdamW(torch.optim.Optimizer):
    """``torch.optim.Muon`` and ``torch.optim.AdamW`` as one optimizer, which is what Lightning takes.

    Args:
        muon: parameter groups of matrices.
        adamw: parameter groups of everything else.
    """

    def __init__(self, muon: list[dict], adamw: list[dict]):
        self.parts = (torch.optim.Muon(muon), torch.optim.AdamW(adamw))
        super().__init__([p for part in self.parts for g in part.param_groups for p in g["params"]], {})
        self._link()

    def _link(self) -> None:
        # The parts own groups and state; schedules change the very same groups.
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
    model: nn.Module, lr: float, muon_lr: float | None, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW for all parameters or, with ``muon_lr``, Muon for the matrices inside blocks.

    Embeddings, heads, tables, adapters and connectors stay with AdamW. Muon makes the steps of all
    directions equally long; nothing normalises what a connector puts out, and with Muon the toy RVEDiT's
    went silent: all units of its GELU negative.

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
    adamw = {"params": rest, "lr": lr, "betas": (0.9, 0.97), "weight_decay": weight_decay}
    if not matrices:
        return torch.optim.AdamW([adamw])
    return MuonAdamW([{"params": matrices, "lr": muon_lr, "weight_decay": 0.0}], [adamw])


def scheduled(optimizer: torch.optim.Optimizer, steps: int, warmup_steps: int, decay_from: float) -> dict:
    """An optimizer with warm-up, a constant rate and, after the share ``decay_from`` of ``steps``, a linear
    fall to zero, in the form that Lightning takes.

    Raises:
        ValueError: ``steps`` is not set.
    """
    from transformers import get_wsd_schedule  # takes a second

    if steps < 1:
        raise ValueError("set trainer.max_steps: schedules and data order are tied to steps.")
    decay = round(steps * (1 - decay_from))
    schedule = get_wsd_schedule(
        optimizer,
        num_warmup_steps=warmup_steps,
        num_stable_steps=max(0, steps - decay - warmup_steps),
        num_decay_steps=decay,
        decay_type="linear",
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
