"""A system over many devices: built on the meta device, sharded by FSDP2, filled from files shard by shard.

The order is torchtitan's: adapters (LoRA), checkpointing, compilation block by block, sharding. There are two
ways to spread a training: with DDP every device holds everything, with FSDP2 its shard.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from vera_lite.backbone.checkpointing import blocks_of
from vera_lite.backbone.float32 import Float32Linear
from vera_lite.errors import UserError, check_choices
from vera_lite.systems import GenCompositor, MiVE, RVEDiT, Vera

#: For each tensor file's name, the parameter that it fills.
Names = dict[str, str]


@dataclass(frozen=True)
class Parallel:
    """How a training uses its devices; nothing here changes what is learned beyond the last bits.

    Attributes:
        weights: folder of the transformer that the paper starts from, as diffusers saves it (Wan, CogVideoX),
            or ``last.ckpt`` of an earlier sharded training, whose average is taken. It is streamed into the
            shards; the system itself is built without memory. None: fresh weights.
        checkpointing: what a backward pass keeps, see :func:`vera_lite.backbone.checkpointing.run_block`.
        compile: compile block by block.
        dtype: of the weights in computing under FSDP2, and of activations. Master weights, gradients' sums,
            AdamW's state and the average are float32 always; so are timesteps, their projections, rotary
            tables, modulation and the insides of norms.
    """

    weights: str | None = None
    checkpointing: Literal["none", "attention", "full"] = "none"
    compile: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        check_choices(self)


# --- the parts of a system -----------------------------------------------------------------------


def set_checkpointing(system: nn.Module, kind: str) -> None:
    """Set what the backward pass of every tower keeps."""
    for module in system.modules():
        if hasattr(module, "checkpointing"):
            module.checkpointing = kind


def compile_blocks(system: nn.Module, backend: str = "inductor") -> None:
    """Compile the forward pass of every block, each as one graph. Hooks (FSDP2's) stay outside."""
    for block in blocks_of(system):
        block.forward = torch.compile(block.forward, fullgraph=True, backend=backend)


def shard(system: nn.Module, mesh: DeviceMesh, dtype: str = "float32") -> None:
    """Shard every parameter over ``mesh`` (FSDP2): a unit per block, one per layer that computes in float32,
    and one for the rest.

    A unit has one precision, so of what stands inside a block the small tables and norm weights are gathered
    in ``dtype``. Their master copies and the sums that they enter are float32.
    """
    kept = {"mesh": mesh, "mp_policy": MixedPrecisionPolicy(cast_forward_inputs=False)}
    how: dict[str, Any] = dict(kept)
    if dtype == "bfloat16":
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        how["mp_policy"] = policy
    blocks = blocks_of(system)
    inside = {id(m) for block in blocks for m in block.modules()}
    for module in system.modules():
        if isinstance(module, Float32Linear) and id(module) not in inside:
            fully_shard(module, **kept)
    for block in blocks:
        # The backward pass begins with the last block: to free it would be to gather it at once again.
        fully_shard(block, reshard_after_forward=block is not blocks[-1], **how)
    fully_shard(system, **how)
    # Editing tokens and adapters are read before the denoiser runs: the whole step gathers the rest.
    register_fsdp_forward_method(system, "training_losses")
    if isinstance(system, RVEDiT):
        register_fsdp_forward_method(system, "context")


def share_tokens(system: nn.Module, group: ProcessGroup) -> None:
    """Let a group of devices share the tokens of their clips (context parallelism)."""
    for module in system.modules():
        if hasattr(module, "context_group"):
            module.context_group = group


def parallelize(
    system: nn.Module, parallel: Parallel, mesh: DeviceMesh | None, group: ProcessGroup | None = None
) -> None:
    """Checkpointing, compilation and sharding, in this order. Without a mesh nothing is sharded.

    Args:
        system: see :class:`vera_lite.training.EditingModule`.
        parallel: how.
        mesh: all devices, along one axis.
        group: those that share the tokens of a clip, if any do.
    """
    if group is not None:
        share_tokens(system, group)
    set_checkpointing(system, parallel.checkpointing)
    if parallel.compile and mesh is not None:
        compile_blocks(system)
    if mesh is not None:
        shard(system, mesh, parallel.dtype)


# --- filling it ----------------------------------------------------------------------------------


def materialise(system: nn.Module, weights: str | Path, device: torch.device | str, seed: int = 0) -> None:
    """Give a system on the meta device memory on ``device`` and values: those of ``weights`` where there are
    any, fresh ones elsewhere. Of sharded tensors every rank reads its own rows only.

    Args:
        system: sharded or not.
        weights: see :class:`Parallel`.
        device: of the shards.
        seed: of the fresh values; the same on all ranks.

    Raises:
        UserError: the folder does not hold the transformer that the system starts from.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    folder = Path(weights)
    if (folder / "meta.pt").is_file():
        system.to_empty(device=device)
        own = {f"ema.{name}": value for name, value in system.state_dict().items()}
        load({"state_dict": own}, checkpoint_id=folder, no_dist=_no_dist())
        return
    fresh = _shallow(system, seed).state_dict()
    system.to_empty(device=device)
    own = system.state_dict()
    passes, changed = pretrained_names(system), _changed(system)
    found = _tensor_files(folder)
    filled = set(changed)
    for names in passes:
        filled |= set(names.values())
    missing = sorted(own.keys() - filled - fresh.keys())
    if missing:
        raise UserError(f"nothing fills {missing[0]} of {type(system).__name__}.")
    with torch.no_grad():
        for name, value in fresh.items():
            if name not in filled:
                _put(own[name], value)
        for names in passes:
            _check(folder, {n: own[ours] for n, ours in names.items() if ours not in changed}, found)
            tensors = {n: own[ours] for n, ours in names.items() if ours not in changed}
            load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=_no_dist())
        for name, (theirs, change) in changed.items():  # few and small: read whole
            if theirs not in found:
                raise UserError(f"{folder} has no tensor {theirs}: give the transformer of the paper.")
            _put(own[name], change(_read(folder, found[theirs], theirs), fresh[name]))


def pretrained_names(system: nn.Module) -> list[Names]:
    """How a diffusers transformer fills a system: one pass over its files per branch."""
    names = list(system.state_dict())
    if isinstance(system, Vera):
        from vera_lite.backbone.loading import branch_names

        return [branch_names(names, k) for k in range(len(system.towers))]
    if isinstance(system, GenCompositor):
        main = _without(names, "transformer.", ("patch_embed.fg_proj", "patch_embed.pos_embedding"))
        own = ("branch_blocks", "branch_x_embedder", "patch_embed.pos_embedding", "patch_embed.proj.weight")
        return [main, _without(names, "branch.", own)] if system.branch is not None else [main]
    if isinstance(system, MiVE | RVEDiT):
        return [_without(names, "transformer.", ("summed_text",))]
    raise UserError(f"{type(system).__name__} starts from fresh weights only: leave weights out.")


def _without(names: Iterable[str], prefix: str, left_out: tuple[str, ...]) -> Names:
    short = (n.removeprefix(prefix) for n in names if n.startswith(prefix))
    return {n: prefix + n for n in short if not n.startswith(left_out) and ".summed_text." not in n}


def _changed(system: nn.Module) -> dict[str, tuple[str, Any]]:
    """Parameters that are made of one in the files: theirs, and (theirs, our fresh one) -> ours."""

    def widened(theirs: Tensor, ours: Tensor) -> Tensor:  # new input channels say nothing yet
        new = theirs.new_zeros(len(theirs), ours.shape[1] - theirs.shape[1], *ours.shape[2:])
        return torch.cat([theirs, new], 1)

    def first(theirs: Tensor, ours: Tensor) -> Tensor:  # the columns of the noisy latents
        return theirs[:, : ours.shape[1]]

    def branch(theirs: Tensor, ours: Tensor) -> Tensor:  # noisy latents, background, mask
        noisy = theirs[:, : ours.shape[1] // 2]
        return widened(torch.cat([noisy, noisy], 1), ours)

    def extended(theirs: Tensor, ours: Tensor) -> Tensor:  # positions of the foreground follow
        return torch.cat([theirs, ours[:, theirs.shape[1] :].to(theirs)], 1)

    if isinstance(system, MiVE):
        return {"transformer.patch_embedding.weight": ("patch_embedding.weight", widened)}
    if not isinstance(system, GenCompositor):
        return {}
    made = {"branch.patch_embed.proj.weight": ("patch_embed.proj.weight", branch)} if system.branch else {}
    own = "transformer.patch_embed."
    if system.transformer.patch_embed.fg_proj is not None:
        made[own + "fg_proj.weight"] = ("patch_embed.proj.weight", first)
        made[own + "fg_proj.bias"] = ("patch_embed.proj.bias", lambda theirs, _: theirs)
    if system.config.backbone.use_learned_positional_embeddings:
        made[own + "pos_embedding"] = ("patch_embed.pos_embedding", extended)
    return made


def _shallow(system: nn.Module, seed: int) -> nn.Module:
    """A system with as few blocks as can be, with values: those of everything that is in no block."""
    config = shallow_config(system.config, getattr(system.config, "branch_layers", 0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(system)(config)


def shallow_config(config: Any, layers: int) -> Any:
    """The config of a system with so many blocks; routed blocks keep their share."""
    backbone, changes = replace(config.backbone, num_layers=layers), {}
    if hasattr(config, "routed_layers"):
        changes["routed_layers"] = layers * config.routed_layers // config.backbone.num_layers
    return replace(config, backbone=backbone, **changes)


def _put(target: Tensor, value: Tensor) -> None:
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.to(target)
    if isinstance(target, DTensor):  # every rank has the whole value: nothing is sent
        value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(value)


def _tensor_files(folder: Path) -> dict[str, str]:
    """Which file of a folder holds each tensor; without reading any."""
    import json

    from safetensors import safe_open

    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: give the folder of a transformer.")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    if index.is_file():
        return json.loads(index.read_text())["weight_map"]
    file = index.with_suffix("").with_suffix("")
    if not file.is_file():
        raise UserError(f"{folder} has no {file.name}; other formats are not read.")
    with safe_open(file, framework="pt") as tensors:
        return dict.fromkeys(tensors.keys(), file.name)


def _check(folder: Path, wanted: dict[str, Tensor], found: dict[str, str]) -> None:
    from safetensors import safe_open

    if missing := sorted(wanted.keys() - found.keys()):
        raise UserError(f"{folder} has no tensor {missing[0]}: give the transformer of the paper.")
    for file in sorted(set(found.values())):
        with safe_open(folder / file, framework="pt") as tensors:
            for name in wanted.keys() & set(tensors.keys()):
                theirs, ours = tuple(tensors.get_slice(name).get_shape()), tuple(wanted[name].shape)
                if theirs != ours:
                    raise UserError(f"{name} is {theirs} in {folder}, {ours} here.")


def _read(folder: Path, file: str, name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(folder / file, framework="pt") as tensors:
        return tensors.get_tensor(name)


def _no_dist() -> bool:
    return not torch.distributed.is_initialized()
