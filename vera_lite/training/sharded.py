"""FSDP2 with Lightning: sizes that are said, and checkpoints that are written while training goes on."""

import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed import checkpoint as dcp


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
        # Checkpoints in the background talk over a backend of the CPU.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else None
        super().__init__(
            data_parallel_size,
            context_parallel_size,
            process_group_backend=backend,
            timeout=timedelta(minutes=timeout_minutes),
        )
        self._writing: tuple[Any, Path, Path] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath, storage_options: Any = None) -> None:
        self.finish_writing()
        link = Path(self.broadcast(filepath))
        folder = link.with_name(f"{link.name}.{checkpoint['global_step']}")
        state = {"state_dict": checkpoint.pop("state_dict")}
        state |= {f"optimizer_{i}": s for i, s in enumerate(checkpoint.pop("optimizer_states", []))}
        if self.is_global_zero:
            if folder.exists() and not (link.exists() and link.samefile(folder)):
                shutil.rmtree(folder)  # what a killed run left
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(checkpoint, folder / "meta.pt")
        self.barrier()
        self._writing = dcp.async_save(state, checkpoint_id=folder), folder, link

    def finish_writing(self) -> None:
        """Wait until the present checkpoint is whole, and let the link point at it."""
        if self._writing is None:
            return
        (future, folder, link), self._writing = self._writing, None
        future.result()
        self.barrier()
        if self.is_global_zero:
            before = link.resolve() if link.is_symlink() else None
            new = link.with_name(link.name + ".new")
            new.unlink(missing_ok=True)
            new.symlink_to(folder.name)
            os.replace(new, link)
            if before is not None and before != folder.resolve() and before.is_dir():
                shutil.rmtree(before)
        self.barrier()

    def teardown(self) -> None:
        self.finish_writing()
        super().teardown()
