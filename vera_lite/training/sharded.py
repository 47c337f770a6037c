"""FSDP2 with Lightning: sizes that are said, and checkpoints that are written while training goes on."""

import inspect
import json
import os
import shutil
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from pickle import UnpicklingError
from threading import Lock
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from vera_lite.errors import UserError
from vera_lite.media.files import read_json, replacing
from vera_lite.systems import Vera, build_system
from vera_lite.systems.vera import LAYERS
from vera_lite.training.parallel import pretrained_names


class Sharded(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy: every rank holds its shard of weights, gradients, AdamW's state and
    the average. :meth:`.EditingModule.configure_model` does the sharding.

    A checkpoint is a folder in torch's distributed format (DCP), which any number of ranks can read. It is
    copied to host memory and written in the background; ``last.ckpt`` is a link that moves to the new folder
    once that is whole.

    Args:
        data_parallel_size: ranks, or groups of ranks, that get clips of their own.
        context_parallel_size: ranks of a group, which share the tokens of their clips. It takes Lightning's
            second axis, whose ranks get the same batch.
        timeout_minutes: after which a rank that waits for another one gives up.
    """

    def __init__(self, data_parallel_size: int, context_parallel_size: int = 1, timeout_minutes: float = 30):
        if min(data_parallel_size, context_parallel_size) < 1:
            raise ValueError("data_parallel_size and context_parallel_size must be positive.")
        super().__init__(
            data_parallel_size,
            context_parallel_size,
            timeout=timedelta(minutes=timeout_minutes),
        )
        self._writing: tuple[Any, Path, Path] | None = None
        self._saved: tuple[Path, int] | None = None
        self._group: Any = None
        self._lock = Lock()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath, storage_options: Any = None) -> None:
        self.finish_writing()
        link, step = Path(self.broadcast(filepath)), checkpoint["global_step"]
        if (link, step) == self._saved:
            return  # nothing has changed since
        folder = link.with_name(f"{link.name}.{step}")
        if self.broadcast(link.exists() and folder.exists() and link.samefile(folder)):
            folder = folder.with_name(folder.name + "+")  # an earlier run's, good until this one is whole
        state = {"state_dict": checkpoint.pop("state_dict")}
        state |= {f"optimizer_{i}": s for i, s in enumerate(checkpoint.pop("optimizer_states", []))}
        if self.is_global_zero:
            if folder.exists():
                shutil.rmtree(folder)  # what a killed run left
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(checkpoint, folder / "meta.pt")
        self.barrier()
        if self._group is None:  # of its own: collectives of the training must not come between
            self._group = torch.distributed.new_group(backend="gloo")
        future = async_save(state, checkpoint_id=folder, process_group=self._group)
        # The first rank is through when all are: it writes the index of all parts last.
        if self.is_global_zero:
            future.add_done_callback(lambda done: done.exception() or self._publish(folder, link))
        self._writing, self._saved = (future, folder, link), (link, step)

    def finish_writing(self) -> None:
        """Wait until the present checkpoint is whole, on all ranks."""
        if self._writing is None:
            return
        (future, folder, link), self._writing = self._writing, None
        future.result()
        if self.is_global_zero:
            self._publish(folder, link)
        self.barrier()

    def _publish(self, folder: Path, link: Path) -> None:
        """Let the link point at a checkpoint that is whole, and drop the one before."""
        with self._lock:
            before = link.resolve() if link.is_symlink() else None
            if before == folder.resolve():
                return
            new = link.with_name(link.name + ".new")
            new.unlink(missing_ok=True)
            new.symlink_to(folder.name)
            os.replace(new, link)
            if before is not None and before.is_dir():
                shutil.rmtree(before)

    def teardown(self) -> None:
        self.finish_writing()
        super().teardown()


def export_sharded(checkpoint: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """The average of a sharded training as safetensors.

    ``folder`` gets ``system.json``, with the clip size and sampling that a pipeline takes, and the weights
    with our names, which :func:`load_exported` reads. Of Vera it also gets one folder per branch, which
    ``diffusers.WanTransformer3DModel`` reads.

    Raises:
        UserError: the folder is no checkpoint of a sharded training.
    """
    saved = read_meta(checkpoint)
    with torch.device("meta"):
        system = build_system(saved)
    names = {name: value.shape for name, value in system.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(system, Vera):
        _export_branches(checkpoint, system, names, folder, dtype)
    tensors = _average(checkpoint, names, dtype)
    save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder)), no_dist=True)
    with replacing(folder / "system.json") as path:
        kept = {name: saved[name] for name in ("system", "config", "pipeline")}
        path.write_text(json.dumps(kept, indent=1) + "\n")


def load_exported(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16):
    """The system of a folder that :func:`export_sharded` wrote, on ``device``; it is built without memory.

    Raises:
        UserError: there is no such folder.
    """
    saved = read_json(folder / "system.json")
    with torch.device("meta"):
        system = build_system(saved)
    system = system.to(dtype).to_empty(device=device)
    own = system.state_dict()
    load(own, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return system.eval()


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint's weights are weights of.

    Raises:
        UserError: it is no checkpoint of a sharded training.
    """
    try:
        return torch.load(checkpoint / "meta.pt", map_location="cpu", weights_only=True)["vera_lite"]
    except (OSError, KeyError, RuntimeError, UnpicklingError) as error:
        raise UserError(
            f"{checkpoint} is no checkpoint of a sharded training: give its last.ckpt."
        ) from error


def _average(checkpoint: Path, names: dict[str, torch.Size], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    tensors = {name: torch.empty(shape, dtype=dtype) for name, shape in names.items()}
    wanted = {"state_dict": {f"ema.{name}": tensor for name, tensor in tensors.items()}}
    load(wanted, checkpoint_id=checkpoint, no_dist=True)
    return tensors


def _export_branches(checkpoint: Path, system: Vera, names: dict, folder: Path, dtype: torch.dtype) -> None:
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    passes = pretrained_names(system)
    known = set(inspect.signature(WanTransformer3DModel.__init__).parameters)
    config = {k: v for k, v in asdict(system.config.backbone).items() if k in known}
    for layer, own in zip(LAYERS, passes, strict=False):
        theirs = passes[0] | own  # what a branch shares is the first one's
        tensors = _average(checkpoint, {ours: names[ours] for ours in theirs.values()}, dtype)
        with torch.device("meta"):
            model = WanTransformer3DModel(**config)
        model.load_state_dict({n: tensors[ours] for n, ours in theirs.items()}, assign=True)
        model.save_pretrained(folder / layer)
