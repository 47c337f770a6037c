"""Checks of a saved pipeline's parts."""

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from vera_lite.backbone import loading
from vera_lite.codecs import Codec, latent_shape
from vera_lite.errors import UserError
from vera_lite.media.files import check_safetensors


def load_weights(system: nn.Module, path: Path) -> None:
    """Load a safetensors file that holds all weights of a system, in any precision.

    Raises:
        UserError: the file is damaged, does not fit the system, or holds numbers that are not finite.
    """
    check_safetensors(path)
    tensors = load_file(path)
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise UserError(f"{path} holds numbers that are not finite, in {name}: export the model again.")
    try:
        loading.load_weights(system, tensors, new=())
    except UserError as error:
        raise UserError(f"{path}: {error} Export the model again.") from error


def check_clip_size(clip_size: Sequence[int], system: nn.Module, codec: Codec) -> tuple[int, int, int]:
    """The size as a tuple; ValueError if codec or network cannot take clips of this size."""
    size = tuple(clip_size)
    if len(size) != 3 or not all(type(n) is int and n > 0 for n in size):
        raise ValueError(f"clip_size is (frames, height, width) in whole numbers above 0, not {size}.")
    _, *latent = latent_shape(codec, *size)
    patch = system.config.backbone.patch_size
    patch = (1, patch, patch) if isinstance(patch, int) else patch
    if any(n % p for n, p in zip(latent, patch, strict=True)):
        raise ValueError(
            f"a clip of {size} is {tuple(latent)} latents, which patches of {patch} do not fill."
        )
    return size
