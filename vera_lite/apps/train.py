"""Training from the command line: LightningCLI on this project's module and data, and the export."""

from pathlib import Path

import torch
from lightning.pytorch.cli import LightningCLI

from vera_lite.codecs import PatchCodec
from vera_lite.errors import UserError
from vera_lite.pipelines import PIPELINES
from vera_lite.systems import build_system
from vera_lite.toy.vlm import toy_processor, toy_vocabulary


def train(arguments: list[str]) -> None:
    """Run LightningCLI.

    Args:
        arguments: ``fit`` or ``validate``, then options. ``--config FILE`` reads a configuration,
            ``--print_config`` shows it whole without running, ``--ckpt_path last`` resumes.
    """
    LightningCLI(
        args=arguments,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        # Order and rank are the data module's business (see StepBatches).
        trainer_defaults={"use_distributed_sampler": False},
    )


def export(checkpoint: Path, folder: Path, half: bool = True) -> None:
    """Turn a training checkpoint into a folder of safetensors that can be loaded: a pipeline with the
    averaged weights, or a vision-language model in transformers' layout.

    Args:
        checkpoint: a single-file ``.ckpt`` of this project's training; only tensors and plain
            values are read from it.
        folder: where to write.
        half: store weights as float16.

    Raises:
        UserError: the file is missing or no such checkpoint.
    """
    if not checkpoint.is_file():
        raise UserError(f"there is no checkpoint file {checkpoint}.")
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign or damaged file fails in many ways
        raise UserError(f"{checkpoint} is no checkpoint that can be read safely.") from error
    if not isinstance(saved, dict) or "vera_lite" not in saved:
        raise UserError(f"{checkpoint} is not a checkpoint of vera-lite's training.")
    if "vision_language" in saved["vera_lite"]:
        _export_vision_language(saved, folder, half)
        return
    system = build_system(saved["vera_lite"])
    prefix = "ema."
    weights = {k.removeprefix(prefix): v for k, v in saved["state_dict"].items() if k.startswith(prefix)}
    system.load_state_dict(weights)
    settings = saved["vera_lite"]["codec"]["settings"]
    if "vae" in settings:
        raise UserError(
            f"{checkpoint} was trained on latents of {settings['vae']} {settings['path']}, which has its own "
            "folder: build the pipeline from its parts."
        )
    codec = PatchCodec(**settings)
    codec.load_state_dict(saved["vera_lite"]["codec"]["tensors"])
    pipeline = next(p for p in PIPELINES if isinstance(system, p.systems))
    pipe = pipeline(system, codec, **saved["vera_lite"]["pipeline"])
    pipe.save_pretrained(folder, torch.float16 if half else torch.float32)


def _export_vision_language(saved: dict, folder: Path, half: bool) -> None:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_dict(saved["vera_lite"]["vision_language"]))
    model.load_state_dict({k.removeprefix("model."): v for k, v in saved["state_dict"].items()})
    model = model.to(torch.float16 if half else torch.float32)
    scenes = model.config.text_config.vocab_size == len(toy_vocabulary(scenes=True))
    processor = toy_processor(scenes=scenes)
    tokenizer = processor.tokenizer
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
