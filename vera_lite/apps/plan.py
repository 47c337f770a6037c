"""`vera-lite plan`: what the training of a configuration needs, before it is begun."""

import math
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

from vera_lite.apps.train import one_line
from vera_lite.errors import UserError
from vera_lite.training import EditingModule
from vera_lite.training.data import StepData
from vera_lite.training.encoded import EncodedClips
from vera_lite.training.plan import FULL, GB, PEAKS, Job, Plan, describe, make_plan, smallest_change


def plan(
    config: Path,
    gpus: int | None = None,
    memory: float = 141,
    device: str = "H200",
    rate: float | None = None,
    inference: bool = False,
) -> str:
    """The plan of a configuration as a text.

    Args:
        config: of `vera-lite fit`.
        gpus: all devices; None: those that the configuration names.
        memory: of a device, in GB (10^9 bytes); an H200 has 141, an H100 80.
        device: whose peak the time is reckoned with.
        rate: price of a device per hour.
        inference: plan the editing of one clip instead.

    Raises:
        UserError: the configuration is wrong, or what it asks for cannot run; with the smallest change that
            can.
    """
    if device not in PEAKS:
        raise UserError(f"--device is one of {', '.join(PEAKS)}, not {device}.")
    if memory <= 0 or (gpus is not None and gpus < 1):
        raise UserError("--gpus and --memory must be positive.")
    job = read_job(config, gpus)
    if inference:
        from vera_lite.training.plan import describe_inference

        return describe_inference(job, device)
    found = make_plan(job)
    text = describe(found, memory * GB, rate, device)
    if found.problems:
        raise UserError(f"{text}\n\nit cannot run: {'; '.join(found.problems)}.")
    if found.total > FULL * memory * GB:
        raise UserError(f"{text}\n\n{_advice(found, memory)}")
    return text


def _advice(found: Plan, memory: float) -> str:
    start = f"it does not fit: {found.total / GB:.0f} GB is more than {FULL:.0%} of {memory:g} GB. "
    change = smallest_change(found.job, memory * GB)
    if change is None:
        return start + "Neither checkpointing, context parallelism nor eight times the GPUs would do."
    what, better = change
    return start + f"The smallest change that fits: {what} ({better.total / GB:.0f} GB)."


def read_job(config: Path, gpus: int | None = None) -> Job:
    """The training that a configuration describes; nothing is loaded.

    Raises:
        UserError: there is no such file, or it is no configuration of a system on encoded clips.
    """
    if not config.is_file():
        raise UserError(f"there is no configuration {config}; check the path.")
    try:
        saved = yaml.safe_load(config.read_text())
        module, data, trainer = _parts(saved)
    except UserError:
        raise
    except Exception as error:  # yaml and jsonargparse raise many kinds
        raise UserError(f"{config} cannot be used: {one_line(error)}") from error
    if not isinstance(data, EncodedClips):
        raise UserError(
            f"{config} trains on {type(data).__name__}: only full-size configurations are planned."
        )
    strategy = trainer.get("strategy", "auto")
    sizes = strategy.get("init_args", {}) if isinstance(strategy, dict) else {}
    sharded, context = "Sharded" in str(strategy), sizes.get("context_parallel_size", 1)
    devices = trainer.get("devices", 1)
    named = (devices if isinstance(devices, int) else 1) * trainer.get("num_nodes", 1)
    batch = data.batch_size * (named // context) * trainer.get("accumulate_grad_batches", 1)
    system = module.system
    return Job(
        kind=type(system),
        config=system.config,
        clip=data.clip,
        batch=batch,
        micro_batch=data.batch_size,
        steps=trainer.get("max_steps", 1),
        parallel=module.parallel,
        gpus=gpus or named,
        context=math.gcd(context, gpus) if gpus else context,
        sharded=sharded,
        muon=module.muon_lr is not None,
        frozen=module.frozen,
        sampling_steps=data.pipeline_settings["sampling"]["steps"],
        name=config.stem,
    )


def _parts(saved: dict) -> tuple[Any, Any, dict]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(EditingModule, "model")
    parser.add_subclass_arguments(StepData, "data")
    config: Any = saved["model"]["init_args"]["system"]["init_args"]["config"]
    if config.get("lora_rank"):  # adapters stand on a loaded model; a plan loads none
        config = dict(config, lora_rank=0)
    parsed = parser.parse_object({"model": saved["model"], "data": saved["data"]})
    rank = parsed.model.init_args.system.init_args.config.get("lora_rank", 0)
    if rank:
        parsed.model.init_args.system.init_args.config.lora_rank = 0
    with torch.device("meta"):
        made = parser.instantiate_classes(parsed)
    if rank:
        object.__setattr__(made.model.system.config, "lora_rank", rank)
    return made.model, made.data, saved.get("trainer", {})
