"""Train a system from Python, for benchmarks and notebooks; the command line has the same parts."""

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from vera_lite.training.guard import RunGuard
from vera_lite.training.module import EditingModule


def fit(
    system: nn.Module,
    data: L.LightningDataModule,
    steps: int,
    *,
    folder: str | Path | None = None,
    accelerator: str = "auto",
    precision: str = "32-true",
    progress: bool = True,
    callbacks: tuple[L.Callback, ...] = (),
    checkpoint_every: int = 250,
    override: bool = False,
    **options,
) -> EditingModule:
    """Train ``system`` for ``steps`` on one device; resumes if ``folder`` holds a checkpoint.

    Args:
        system: see :class:`EditingModule`.
        data: e.g. :class:`vera_lite.training.ToyWorldData`.
        steps: optimizer steps in all; schedules depend on it.
        folder: for ``last.ckpt``; None writes nothing.
        accelerator: Lightning's; "auto" takes a GPU if there is one.
        precision: Lightning's; "bf16-mixed" is about 1.5 times faster on CPUs with bfloat16.
        progress: show a progress bar.
        callbacks: more Lightning callbacks.
        checkpoint_every: steps between two checkpoints.
        override: resume with changed settings, see :class:`vera_lite.training.guard.RunGuard`.
        options: of :class:`EditingModule`.

    Returns:
        The module; ``module.ema`` is the system to use.
    """
    module = EditingModule(system, **options)
    watching: list[L.Callback] = [*callbacks, RunGuard(override)]
    resume = None
    if folder is not None:
        # With a version counter a resumed run would write last-v1.ckpt instead of replacing the file.
        keep = {"save_last": True, "save_top_k": 0, "enable_version_counter": False}
        keep["every_n_train_steps"] = checkpoint_every
        watching.append(ModelCheckpoint(dirpath=folder, **keep))
        last = Path(folder) / "last.ckpt"
        resume = last if last.is_file() else None
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        precision=precision,
        max_steps=steps,
        gradient_clip_val=1.0,
        callbacks=watching,
        enable_checkpointing=folder is not None,
        enable_progress_bar=progress,
        enable_model_summary=False,
        logger=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return module
