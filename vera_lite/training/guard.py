"""Makes unattended training safe: it stops at NaN, owns its folder, and resumes with the same settings."""

import inspect
import json
import os
import signal
import threading
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from filelock import FileLock, Timeout
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from vera_lite.errors import UserError
from vera_lite.media.files import replacing
from vera_lite.systems import describe_system
from vera_lite.training.data import data_rank

#: Settings that may change at a resume, because they do not change the result.
_FREE = ("workers", "validation_clips", "cache_dir", "readings", "compile", "parallel")
_KEY = "vera_lite_settings"


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it. Lightning writes to the system's temporary folder,
    and a move between two file systems does not replace a file in one step."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


class RunGuard(L.Callback):
    """Watches over a training.

    - A gradient or a weight that is not finite stops it; the last checkpoint does not change.
    - Two trainings cannot share a folder of checkpoints, and checkpoints are replaced whole.
    - SIGTERM saves ``last.ckpt`` after the current step and exits with 143, on all ranks.
    - A resumed training prints the changed settings. It refuses changes of the result, unless ``override`` is
      set; then the new values hold.
    - A checkpoint from inside an accumulation window resumes at the window's first batch.

    Args:
        override: resume with changed settings.

    Raises:
        FloatingPointError: a gradient or a weight is not finite.
        UserError: the folder is in use; or settings have changed.
    """

    def __init__(self, override: bool = False):
        self.override = override
        self._locks: list[FileLock] = []
        self._terminated = False

    # --- one training per folder -------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpoints()
        if stage != "fit" or not trainer.is_global_zero:
            return
        for folder in {Path(c.dirpath) for c in _savers(trainer)}:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".training.lock")
            try:
                lock.acquire(blocking=False)
            except Timeout:
                raise UserError(f"another training is running in {folder}: choose another folder.") from None
            self._locks.append(lock)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._unlock()

    def on_exception(self, trainer, pl_module, exception) -> None:
        self._unlock()

    def _unlock(self) -> None:
        for lock in self._locks:
            lock.release()
        self._locks.clear()

    # --- numbers -----------------------------------------------------------------------------------

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return  # in float16 the scaler skips steps with infinite gradients, which are normal there
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if not _finite(gradients):
            raise FloatingPointError(
                f"step {trainer.global_step + 1}: the loss or its gradient is not finite; training stopped. "
                "Try a lower lr or muon_lr."
            )

    # --- SIGTERM -----------------------------------------------------------------------------------

    def on_train_start(self, trainer, pl_module) -> None:
        # Lightning's own handler exits with 0, and two ranks would wait for each other in it.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, _signal, _frame) -> None:
        self._terminated = True

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if not trainer.strategy.reduce_boolean_decision(self._terminated, all=False):
            return
        for saver in _savers(trainer):
            trainer.save_checkpoint(
                Path(saver.dirpath) / f"{saver.CHECKPOINT_NAME_LAST}{saver.FILE_EXTENSION}"
            )
        raise SystemExit(128 + signal.SIGTERM)

    # --- resume ------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        if not _finite([p for p in pl_module.parameters() if p.is_floating_point()]):
            raise FloatingPointError(
                f"step {trainer.global_step}: a weight is not finite; training stopped. "
                "Try a lower lr or muon_lr."
            )
        checkpoint[_KEY] = _settings(trainer, pl_module)

    def on_load_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        before, now = checkpoint.get(_KEY), _settings(trainer, pl_module)
        if before is not None:
            changed = [
                f"{name} was {before['learned'].get(name)!r} and is {now['learned'].get(name)!r}"
                for name in sorted(before["learned"].keys() | now["learned"].keys())
                if before["learned"].get(name) != now["learned"].get(name)
            ]
            free = [
                f"{name} was {before['free'].get(name)!r} and is {value!r}"
                for name, value in now["free"].items()
                if before["free"].get(name) != value
            ]
            if (changed or free) and trainer.is_global_zero:
                print("Changed since the checkpoint: " + "; ".join([*changed, *free]) + ".", flush=True)
            if changed and not self.override:
                raise UserError(
                    f"this training began with other settings: {'; '.join(changed)}. Give the old ones, or "
                    "--override to continue with the new ones."
                )
            if changed:
                _put_rates(checkpoint, pl_module)
        _rewind(checkpoint, trainer)


def _savers(trainer: L.Trainer) -> list[ModelCheckpoint]:
    return [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.dirpath]


def _finite(tensors: list[torch.Tensor]) -> bool:
    return not tensors or bool(nn.utils.get_total_norm(tensors).isfinite())


def _settings(trainer: L.Trainer, module: L.LightningModule) -> dict[str, dict]:
    """Settings of a training: ``learned`` ones decide the result, ``free`` ones may change."""
    data, every = trainer.datamodule, trainer.accumulate_grad_batches
    learned, free = {}, {"max_steps": trainer.max_steps, "precision": str(trainer.precision)}
    for part, owner in (("model", module), ("data", data)):
        learned[part] = type(owner).__name__
        for name, value in _arguments(owner).items():
            (free if name in _FREE else learned)[f"{part}.{name}"] = value
    if hasattr(module, "system"):
        for name, value in describe_system(module.system)["config"].items():
            learned[f"system.{name}"] = _plain(value)
    clips = learned.pop("data.batch_size", None)
    if clips is not None:
        learned["clips per step"] = clips * data_rank(trainer)[1] * every
    return {"learned": learned, "free": free}


def _arguments(owner: object) -> dict[str, Any]:
    """An object's constructor arguments, as far as it has them as attributes that fit into JSON."""
    names = {n for c in type(owner).__mro__ for n in inspect.signature(c.__init__).parameters}
    found = {}
    for name in sorted(names - {"self", "args", "kwargs", "options"}):
        try:
            found[name] = _plain(getattr(owner, name))
        except (AttributeError, TypeError):
            continue
    return found


def _plain(value: object) -> Any:
    """The value after a round trip through JSON; TypeError if it does not fit."""
    if is_dataclass(value):
        value = asdict(value)
    return json.loads(json.dumps(value, default=str if isinstance(value, Path) else None))


def _put_rates(checkpoint: dict, module: L.LightningModule) -> None:
    """Replace the checkpoint's learning rates and weight decay, which Lightning restores, by the module's."""
    configured: Any = module.configure_optimizers()
    fresh = configured["optimizer"].param_groups
    [schedule] = checkpoint["lr_schedulers"]
    if "optimizer_states" in checkpoint:
        [state] = checkpoint["optimizer_states"]
        groups = [g for part in state.get("parts", [state]) for g in part["param_groups"]]
    else:  # a sharded one is read already
        groups = module.trainer.optimizers[0].param_groups
    for group, new in zip(groups, fresh, strict=True):
        base = new["initial_lr"]
        group["lr"] = group["lr"] * base / group["initial_lr"] if group["initial_lr"] else base
        group |= {"initial_lr": base, "weight_decay": new["weight_decay"]}
    schedule["base_lrs"] = [new["initial_lr"] for new in fresh]


def _rewind(checkpoint: dict, trainer: L.Trainer) -> None:
    """Go back to the first batch of an accumulation window, because its gradients were not saved."""
    done = checkpoint["global_step"] * trainer.accumulate_grad_batches
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts |= {name: done for name in counts}
