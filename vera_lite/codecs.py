"""Pixels <-> latents, behind one protocol: a closed-form patch codec, and diffusers' Wan and CogVideoX VAEs.

They are causal in time: frame 0 is coded alone, then groups of ``temporal_stride`` frames. So
T = 1 + n * temporal_stride frames become t = 1 + n latent frames.
"""

from pathlib import Path
from typing import Any, Protocol, Self

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vera_lite.errors import UserError


class Codec(Protocol):
    """The interface of a codec. Latents have about zero mean and unit power."""

    latent_channels: int
    spatial_stride: int
    temporal_stride: int

    @property
    def settings(self) -> dict:
        """Which codec it is, as plain values for JSON."""
        ...

    def encode(self, video: Tensor) -> Tensor:
        """(B, T, C, H, W) in [0, 1] with C of 1 or 3 -> (B, c, t, h, w); grey is repeated to RGB."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(B, c, t, h, w) -> (B, T, 3, H, W), clamped to [0, 1]."""
        ...


def describe_codec(codec: Codec) -> dict:
    """A codec as checkpoints keep it: its settings, and the tensors of a :class:`PatchCodec`."""
    return {
        "settings": codec.settings,
        "tensors": codec.state_dict() if isinstance(codec, PatchCodec) else {},
    }


def latent_shape(codec: Codec, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """(c, t, h, w) of a clip.

    Raises:
        ValueError: the clip does not fit the codec's strides.
    """
    s, k = codec.spatial_stride, codec.temporal_stride
    if (frames - 1) % k or height % s or width % s:
        raise ValueError(
            f"a clip of {frames} frames of {height}x{width} does not fit this codec: "
            f"it needs 1 + {k}n frames and sides divisible by {s}."
        )
    return codec.latent_channels, 1 + (frames - 1) // k, height // s, width // s


def latent_mask(codec: Codec, mask: Tensor) -> Tensor:
    """A mask on the latent grid: 1 where any pixel of any frame of a cell is inside.

    Args:
        codec: gives the strides.
        mask: (B, T, 1, H, W); above 0.5 is inside.

    Returns:
        (B, 1, t, h, w), 0 or 1.
    """
    _, t, h, w = latent_shape(codec, mask.shape[1], *mask.shape[-2:])
    inside = (mask > 0.5).to(mask.dtype).transpose(1, 2)
    # Frame 0 is a group of its own.
    first, rest = F.adaptive_max_pool3d(inside[:, :, :1], (1, h, w)), inside[:, :, 1:]
    return torch.cat([first, F.adaptive_max_pool3d(rest, (t - 1, h, w))], 2) if t > 1 else first


def _to_rgb(video: Tensor) -> Tensor:
    if video.ndim != 5 or video.shape[2] not in (1, 3):
        raise ValueError(f"a codec takes (B, T, 1 or 3, H, W), got {tuple(video.shape)}.")
    return video.expand(-1, -1, 3, -1, -1) * 2 - 1


class PatchCodec(nn.Module):
    """Principal components of space-time patches, fitted in closed form.

    A patch of frame 0 has p*p*3 numbers, a patch of a later group k*p*p*3. Each kind has its own basis; the
    first ``latent_channels`` components are kept. Component i, with standard deviation s_i, is divided by
    sqrt(s_i). This is half-way between no whitening, where the first component hides the others, and full
    whitening, where noise components cost as much as signal. One more factor makes the mean power 1.

    Args:
        patch: p, the spatial stride in pixels.
        temporal_stride: k, frames in a group.
        latent_channels: components kept.
    """

    first_mean: Tensor
    first_basis: Tensor
    first_scale: Tensor
    group_mean: Tensor
    group_basis: Tensor
    group_scale: Tensor

    def __init__(self, patch: int = 4, temporal_stride: int = 4, latent_channels: int = 24):
        super().__init__()
        if latent_channels > patch * patch * 3:
            raise ValueError(f"a {patch}x{patch} first frame patch has no {latent_channels} components.")
        self.spatial_stride, self.temporal_stride = patch, temporal_stride
        self.latent_channels = latent_channels
        for kind, frames in (("first", 1), ("group", temporal_stride)):
            size = frames * patch * patch * 3
            self.register_buffer(f"{kind}_mean", torch.zeros(size))
            self.register_buffer(f"{kind}_basis", torch.eye(size, latent_channels))  # orthonormal columns
            self.register_buffer(f"{kind}_scale", torch.ones(latent_channels))

    @property
    def settings(self) -> dict:
        """The constructor's arguments."""
        return {
            "patch": self.spatial_stride,
            "temporal_stride": self.temporal_stride,
            "latent_channels": self.latent_channels,
        }

    def _patches(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """[-1, 1] video to rows of patches: (B, h, w, p*p*3) and (B, n, h, w, k*p*p*3)."""
        p, k = self.spatial_stride, self.temporal_stride
        first = rearrange(video[:, 0], "b c (h p) (w q) -> b h w (p q c)", p=p, q=p)
        group = rearrange(video[:, 1:], "b (n k) c (h p) (w q) -> b n h w (k p q c)", k=k, p=p, q=p)
        return first, group

    @torch.no_grad()
    def fit(self, videos: list[Tensor]) -> "PatchCodec":
        """Fit to videos (B, T, C, H, W) in [0, 1]; every patch counts the same."""
        both = [self._patches(_to_rgb(v)) for v in videos]
        for kind, rows in (("first", [f for f, _ in both]), ("group", [g for _, g in both])):
            x = torch.cat([r.flatten(0, -2) for r in rows]).double()
            mean = x.mean(0)
            variance, basis = torch.linalg.eigh(torch.cov(x.T))
            variance, basis = variance.flip(0).clamp_min(1e-12), basis.flip(1)
            c = self.latent_channels
            # The sign of an eigenvector is arbitrary; fixing it makes a fit reproducible.
            basis = basis[:, :c] * basis[:, :c].sum(0).sign().where(basis[:, :c].sum(0) != 0, 1.0)
            scale = variance[:c] ** 0.25  # sqrt of the standard deviation
            scale = scale * ((variance[:c] / scale**2).mean()) ** 0.5
            for name, value in (("mean", mean), ("basis", basis), ("scale", scale)):
                getattr(self, f"{kind}_{name}").copy_(value)
        return self

    def encode(self, video: Tensor) -> Tensor:
        """See :class:`Codec`."""
        latent_shape(self, video.shape[1], *video.shape[-2:])
        first, group = self._patches(_to_rgb(video))
        first = (first - self.first_mean) @ self.first_basis / self.first_scale
        group = (group - self.group_mean) @ self.group_basis / self.group_scale
        return rearrange(torch.cat([first[:, None], group], 1), "b t h w c -> b c t h w").contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """See :class:`Codec`."""
        p, k = self.spatial_stride, self.temporal_stride
        z = rearrange(latents, "b c t h w -> b t h w c")
        first = (z[:, 0] * self.first_scale) @ self.first_basis.T + self.first_mean
        group = (z[:, 1:] * self.group_scale) @ self.group_basis.T + self.group_mean
        first = rearrange(first, "b h w (p q c) -> b 1 c (h p) (w q)", p=p, q=p)
        group = rearrange(group, "b n h w (k p q c) -> b (n k) c (h p) (w q)", k=k, p=p, q=p)
        return (torch.cat([first, group], 1) / 2 + 0.5).clamp(0, 1)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file that :meth:`load` reads."""
        metadata = {"patch": str(self.spatial_stride), "temporal_stride": str(self.temporal_stride)}
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, path, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "PatchCodec":
        """Read a file written by :meth:`save`.

        Raises:
            UserError: there is no such file, or it is no codec.
        """
        if not Path(path).is_file():
            raise UserError(f"there is no codec file {path}; check the path.")
        try:
            with safe_open(path, framework="pt") as file:
                meta = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            codec = cls(int(meta["patch"]), int(meta["temporal_stride"]), tensors["first_scale"].numel())
            codec.load_state_dict(tensors)
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} is damaged or no codec: copy or export it again.") from error
        return codec


class _PretrainedCodec(nn.Module):
    """A frozen VAE of diffusers. Latents are the posterior's mode, normalised by ``mean`` and ``std``.

    Args:
        vae: the loaded model.
    """

    vae_class: str
    mean: Tensor | float
    std: Tensor | float

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae: Any = vae.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(cls, path: str | Path, **kwargs) -> Self:
        """Load a VAE folder or Hub id (``subfolder="vae"`` for a whole pipeline of diffusers)."""
        import diffusers

        return cls(getattr(diffusers, cls.vae_class).from_pretrained(path, **kwargs))

    @property
    def settings(self) -> dict:
        """Which VAE it is. Its weights have a folder of their own and are not part of a checkpoint."""
        return {"vae": self.vae_class, "path": str(self.vae.config.get("_name_or_path", ""))}

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """See :class:`Codec`."""
        latent_shape(self, video.shape[1], *video.shape[-2:])
        latents = self.vae.encode(_to_rgb(video).transpose(1, 2).to(self.vae.dtype)).latent_dist.mode()
        return ((latents - self.mean) / self.std).to(video.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """See :class:`Codec`."""
        video = self.vae.decode((latents * self.std + self.mean).to(self.vae.dtype), return_dict=False)[0]
        return (video.transpose(1, 2) / 2 + 0.5).clamp(0, 1).to(latents.dtype)


class WanCodec(_PretrainedCodec):
    """diffusers' ``AutoencoderKLWan`` (Wan2.1: 16 channels, 4x8x8; Wan2.2-TI2V: 48, 4x16x16).

    Latents are normalised with the per-channel mean and deviation of the VAE's config, as in diffusers' Wan
    pipelines.
    """

    vae_class = "AutoencoderKLWan"

    def __init__(self, vae: nn.Module):
        super().__init__(vae)
        config = self.vae.config
        self.latent_channels = config.z_dim
        self.spatial_stride = config.scale_factor_spatial
        self.temporal_stride = config.scale_factor_temporal
        shape = (1, config.z_dim, 1, 1, 1)
        self.register_buffer("mean", torch.tensor(config.latents_mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(config.latents_std).view(shape), persistent=False)


class CogVideoXCodec(_PretrainedCodec):
    """diffusers' ``AutoencoderKLCogVideoX`` (16 channels, 4x8x8), with the scaling factor of its config.

    After the first frame, this VAE works on eight frames at a time; within these its group norms see the
    future. A clip must have 1 + 8n frames, such as CogVideoX's 49, or the decoder returns more frames.
    """

    vae_class = "AutoencoderKLCogVideoX"

    def __init__(self, vae: nn.Module):
        super().__init__(vae)
        config = self.vae.config
        self.latent_channels = config.latent_channels
        self.spatial_stride = 2 ** (len(config.block_out_channels) - 1)
        self.temporal_stride = int(config.temporal_compression_ratio)
        self.mean, self.std = 0.0, 1 / config.scaling_factor

    def encode(self, video: Tensor) -> Tensor:
        """See :class:`Codec`.

        Raises:
            ValueError: the clip does not have 1 + 8n frames.
        """
        if (video.shape[1] - 1) % 8:
            raise ValueError(f"CogVideoX's VAE needs 1 + 8n frames, not {video.shape[1]}.")
        return super().encode(video)
