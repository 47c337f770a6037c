"""Load Wan checkpoints that diffusers saved into one tower, or into several towers that attend jointly.

In a system of several towers (Vera), ``towers.K`` holds the embeddings and the head of branch K, and
``blocks.I.branches.K`` its block I.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from vera_lite.backbone.wan import WanConfig
from vera_lite.errors import UserError

StateDict = dict[str, Tensor]

_WEIGHTS = "diffusion_pytorch_model.safetensors"


def read_wan(folder: str | Path) -> tuple[WanConfig, StateDict]:
    """Read a folder written by ``diffusers.WanTransformer3DModel.save_pretrained``, sharded or not.

    A folder may hold more than one weight file (an average beside the weights): this reads the file that
    diffusers reads.

    Raises:
        UserError: the folder holds no such model, or one with image conditioning, which our block lacks.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: give the folder of a Wan transformer.")
    saved = json.loads((folder / "config.json").read_text())
    image = saved.get("added_kv_proj_dim") is not None or saved.get("image_dim") is not None
    if image or saved.get("in_channels") != saved.get("out_channels"):
        raise UserError(f"{folder} is an image-to-video Wan; use a text-to-video or TI2V checkpoint.")
    known = {f.name for f in fields(WanConfig)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items() if k in known}
    index = folder / f"{_WEIGHTS}.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = [_WEIGHTS]
    tensors: StateDict = {}
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; other formats are not read.")
        tensors.update(load_file(folder / name))
    return WanConfig(**values), tensors


def load_weights(model: nn.Module, tensors: StateDict, new: tuple[str, ...] = ("summed_text.",)) -> None:
    """Copy a checkpoint into a model, in the model's precision.

    Parameters whose names contain one of ``new`` are ours alone: they may be missing in the checkpoint and
    keep their initial values.

    Raises:
        UserError: names or shapes do not fit.
    """
    own = model.state_dict()
    missing = {n for n in own.keys() - tensors.keys() if not any(part in n for part in new)}
    unknown = tensors.keys() - own.keys()
    if missing or unknown:
        raise UserError(
            f"the checkpoint does not fit: {len(missing)} parameters are missing {sorted(missing)[:3]}, "
            f"{len(unknown)} are unknown {sorted(unknown)[:3]}."
        )
    for name, value in tensors.items():
        theirs, ours = tuple(value.shape), tuple(own[name].shape)
        if theirs != ours:
            raise UserError(f"{name} is {theirs} in the checkpoint, {ours} here.")
    model.load_state_dict(own | tensors)


def load_branches(model: nn.Module, states: list[StateDict]) -> None:
    """Copy a diffusers state dict into each branch of a model; shared parameters come from the first branch.

    Raises:
        UserError: names or shapes do not fit.
    """
    own, tensors = model.state_dict(), {}
    for branch in reversed(range(len(model.towers))):  # the first branch comes last and wins
        for name, value in states[branch].items():
            place = _place(name, branch)
            tensors[place if place in own else _place(name, 0)] = value
    branches = ("towers.", "blocks.")
    load_weights(model, tensors, new=("summed_text.", *(n for n in own if not n.startswith(branches))))


def branch_names(ours: Iterable[str], branch: int) -> dict[str, str]:
    """Our parameter for each of diffusers' names, of those that branch ``branch`` does not share."""
    towers, blocks = f"towers.{branch}.", re.compile(rf"blocks\.(\d+)\.branches\.{branch}\.(.+)")
    names = {}
    for name in ours:
        if name.startswith(towers) and ".summed_text." not in name:
            names[name.removeprefix(towers)] = name
        elif match := blocks.fullmatch(name):
            names[f"blocks.{match[1]}.{match[2]}"] = name
    return names


def _place(name: str, branch: int) -> str:
    """Our name for the parameter that diffusers calls ``name``."""
    if not name.startswith("blocks."):
        return f"towers.{branch}.{name}"
    _, block, rest = name.split(".", 2)
    return f"blocks.{block}.branches.{branch}.{rest}"
