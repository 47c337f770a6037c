"""Weights between diffusers' Wan checkpoints and our stacked parameters.

Our parameter of a name is the stack, over experts, of diffusers' parameters of that name; shapes
differ only by singleton axes and by the patch convolution, which is a matrix here.
"""

import json
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from vera_lite.backbone.wan import WanConfig, WanTransformer
from vera_lite.errors import UserError

StateDict = dict[str, Tensor]

#: Ours only: zero at the start, absent from Wan checkpoints.
_OURS_ONLY = ("condition_embedder.pooled_text.",)


def read_wan(folder: str | Path) -> tuple[WanConfig, StateDict]:
    """Read a folder written by ``diffusers.WanTransformer3DModel.save_pretrained``, sharded or not.

    Raises:
        UserError: the folder holds no such model, or one with image conditioning (I2V), which our
            block does not have.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: give the folder of a Wan transformer.")
    saved = json.loads((folder / "config.json").read_text())
    if saved.get("added_kv_proj_dim") is not None or saved.get("image_dim") is not None:
        raise UserError(f"{folder} is an image-to-video Wan; use a text-to-video or TI2V checkpoint.")
    known = {f.name for f in fields(WanConfig)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items() if k in known}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} has no .safetensors file; other formats are not read.")
    tensors: StateDict = {}
    for file in files:
        tensors.update(load_file(file))
    return WanConfig(**values), tensors


def load_wan(model: WanTransformer, checkpoints: list[StateDict]) -> None:
    """Copy diffusers state dicts into ``model``: one for all branches, or one a branch.

    Where the model shares a parameter between branches, the first checkpoint's is taken.

    Raises:
        UserError: names or shapes do not fit.
    """
    if len(checkpoints) not in (1, model.branches):
        raise UserError(
            f"{model.branches} branches take 1 or {model.branches} checkpoints, not {len(checkpoints)}."
        )
    target = model.state_dict()
    wanted = {n for n in target if not n.startswith(_OURS_ONLY)}
    missing, foreign = wanted - checkpoints[0].keys(), checkpoints[0].keys() - wanted
    if missing or foreign:
        raise UserError(
            f"the checkpoint does not fit: {len(missing)} parameters are missing {sorted(missing)[:3]}, "
            f"{len(foreign)} are unknown {sorted(foreign)[:3]}."
        )
    with torch.no_grad():
        for name in wanted:
            for expert, slot in enumerate(target[name]):
                value = checkpoints[expert % len(checkpoints)][name]
                if value.numel() != slot.numel():
                    raise UserError(
                        f"{name} is {tuple(value.shape)} in the checkpoint, {tuple(slot.shape)} here."
                    )
                slot.copy_(value.reshape(slot.shape))


def split_wan(model: WanTransformer) -> list[StateDict]:
    """The inverse: one diffusers-named state dict a branch; shared parameters appear in each.

    Patch embedding and tables get back the shapes that diffusers gives them.
    """
    config = model.config
    states: list[StateDict] = [{} for _ in range(model.branches)]
    for name, stack in model.state_dict().items():
        if name.startswith(_OURS_ONLY):
            continue
        for branch, state in enumerate(states):
            value = stack[min(branch, len(stack) - 1)].clone()
            if name == "patch_embedding.weight":
                value = value.view(config.dim, config.in_channels, *config.patch_size)
            elif name.endswith("scale_shift_table"):
                value = value[None]
            state[name] = value
    return states
