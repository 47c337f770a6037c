"""Training from the command line: LightningCLI on this project's module and data, and the export."""

import re
from argparse import ArgumentError
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from vera_lite.codecs import PatchCodec
from vera_lite.errors import UserError
from vera_lite.pipelines import PIPELINES
from vera_lite.systems import build_system
from vera_lite.toy.vlm import toy_processor, toy_vocabulary
from vera_lite.training.guard import RunGuard


class _TrainingCLI(LightningCLI):
    """LightningCLI with ``--override``, :class:`RunGuard`, and one sentence for a wrong configuration."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        return super().init_parser(**kwargs | {"exit_on_error": False})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--override", action="store_true", help="resume although settings have changed, with the new ones"
        )

    def instantiate_classes(self) -> None:
        model = self._get(self.config, "model")
        parallel = model.get("init_args", {}).get("parallel") or {}
        try:
            # What is filled from files later needs no memory now, on any rank.
            with torch.device("meta") if parallel.get("weights") else nullcontext():
                super().instantiate_classes()
        except UserError:
            raise
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"the configuration cannot be used: {one_line(error)}") from error
        for callback in self.trainer.callbacks:
            if isinstance(callback, RunGuard):
                callback.override = self._get(self.config, "override", default=False)


def one_line(error: Exception) -> str:
    """The reason of an error; jsonargparse wraps it in a list of all types that an option may have."""
    text = str(error)
    reasons = re.findall(r"^ *- (.+(?:\n(?! *- | *Given value).+)*)", text, re.M)
    reasons = [r for r in reasons if not r.startswith("Expected a")] or [text]
    return " ".join(reasons[0].split())


def train(arguments: list[str]) -> None:
    """Run LightningCLI.

    Args:
        arguments: ``fit`` or ``validate``, then options. ``--config FILE`` reads a configuration,
            ``--print_config`` shows it whole without running, ``--ckpt_path last`` resumes.

    Raises:
        UserError: the configuration is wrong; or as :class:`vera_lite.training.guard.RunGuard`.
    """
    try:
        _TrainingCLI(
            args=arguments,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            # The data module decides order and rank (see StepBatches).
            trainer_defaults={
                "use_distributed_sampler": False,
                "callbacks": [RunGuard()],
            },
        )
    except ArgumentError as error:
        raise UserError(one_line(error)) from None


def export(checkpoint: Path, folder: Path, half: bool = True) -> None:
    """Turn a training checkpoint into a folder of safetensors: a pipeline with the averaged weights, or a
    vision-language model in transformers' layout.

    Args:
        checkpoint: ``.ckpt`` of this project's training, a single file or the folder of a sharded one; only
            tensors and plain values are read from it.
        folder: where to write.
        half: store weights as float16.

    Raises:
        UserError: the file is missing or no such checkpoint.
    """
    if checkpoint.is_dir():
        from vera_lite.training.sharded import export_sharded

        export_sharded(checkpoint, folder, torch.bfloat16 if half else torch.float32)
        return
    if not checkpoint.is_file():
        raise UserError(f"there is no checkpoint file {checkpoint}; check the path.")
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign or damaged file fails in many ways
        raise UserError(f"{checkpoint} cannot be read safely: give the .ckpt of a training.") from error
    if not isinstance(saved, dict) or "vera_lite" not in saved:
        raise UserError(f"{checkpoint} is not a checkpoint of vera-lite's training: give another file.")
    if "vision_language" in saved["vera_lite"]:
        _export_vision_language(saved, folder, half)
        return
    prefix = "ema."
    try:
        system = build_system(saved["vera_lite"])
        weights = {k.removeprefix(prefix): v for k, v in saved["state_dict"].items() if k.startswith(prefix)}
        system.load_state_dict(weights)
        settings = saved["vera_lite"]["codec"]["settings"]
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from error
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{checkpoint} does not hold the weights of its system: train again.") from error
    if "vae" in settings:
        raise UserError(
            f"{checkpoint} was trained on latents of {settings['vae']} {settings['path']}: build the "
            "pipeline from its parts."
        )
    codec = PatchCodec(**settings)
    codec.load_state_dict(saved["vera_lite"]["codec"]["tensors"])
    pipeline = next(p for p in PIPELINES if isinstance(system, p.systems))
    pipe = pipeline(system, codec, **saved["vera_lite"]["pipeline"])
    pipe.save_pretrained(folder, torch.float16 if half else torch.float32)


def _export_vision_language(saved: dict, folder: Path, half: bool) -> None:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = saved["vera_lite"]["vision_language"]
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_dict(config))
    model.load_state_dict({k.removeprefix("model."): v for k, v in saved["state_dict"].items()})
    model = model.to(torch.float16 if half else torch.float32)
    scenes = config["text_config"]["vocab_size"] == len(toy_vocabulary(scenes=True))
    processor = toy_processor(scenes=scenes)
    tokenizer = processor.tokenizer
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
