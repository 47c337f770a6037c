"""CogVideoX's diffusion transformer (arXiv 2408.06072): text and video in one self-attention.

Unlike Wan's block it has no cross-attention: text tokens stand before the video tokens, both pass through
the same attention and feed-forward layers, and only the modulation by the timestep differs. Built without
text (``text_embed_dim=None``) it is a plain DiT over video tokens.

A system runs the three steps embed, blocks and head itself, because papers add different things between them.

Axis letters: B batch, T text tokens, S video tokens, D width, H heads, d = D / H. Parameter names and
shapes are those of ``diffusers.CogVideoXTransformer3DModel``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vera_lite.backbone.context import split, ulysses
from vera_lite.backbone.rotary import Grid, rotary_table, rotate
from vera_lite.backbone.wan import FeedForward, TwoLayers, attend, sinusoids
from vera_lite.errors import UserError, check_sizes


@dataclass(frozen=True)
class CogVideoXConfig:
    """Size of a CogVideoX transformer; names of diffusers' config.json, defaults of CogVideoX-I2V-5B.

    Attributes:
        num_attention_heads, attention_head_dim: D is their product; 16 divides the channels of a head.
        in_channels, out_channels: latent channels read and predicted.
        time_embed_dim: width of the embedded timestep.
        text_embed_dim: width of the text features; None builds a model without text.
        num_layers: blocks.
        patch_size: latent cells along each side of a token; in time a token is one latent frame.
        norm_eps: of all norms except those of queries and keys.
        use_learned_positional_embeddings: also add a table of positions to the tokens, as the
            image-to-video model does. Then the model takes only the sample sizes below.
        sample_frames, sample_height, sample_width: frames in pixels, sides in latent cells.
        max_text_seq_length: T of that table.
    """

    num_attention_heads: int = 48
    attention_head_dim: int = 64
    in_channels: int = 32
    out_channels: int = 16
    time_embed_dim: int = 512
    text_embed_dim: int | None = 4096
    num_layers: int = 42
    patch_size: int = 2
    norm_eps: float = 1e-5
    use_learned_positional_embeddings: bool = True
    sample_frames: int = 49
    sample_height: int = 60
    sample_width: int = 90
    max_text_seq_length: int = 226

    def __post_init__(self):
        check_sizes(self, "num_attention_heads", "attention_head_dim", "patch_size", "time_embed_dim")
        if self.attention_head_dim % 16:
            raise ValueError(f"attention_head_dim must divide by 16, {self.attention_head_dim} does not.")

    @property
    def dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def sample_grid(self) -> Grid:
        """Token grid (t, h, w) of the sample sizes; the codec has a temporal stride of 4."""
        frames = (self.sample_frames - 1) // 4 + 1
        return frames, self.sample_height // self.patch_size, self.sample_width // self.patch_size

    def grid(self, latent_size: Sequence[int]) -> Grid:
        """Token grid (t, h, w) of latents of size (..., t, h, w); ValueError if patches do not fit."""
        (t, h, w), p = latent_size[-3:], self.patch_size
        if h % p or w % p:
            raise ValueError(f"latents of {(t, h, w)} do not divide into patches of {p}x{p}.")
        return t, h // p, w // p


# --- positions -----------------------------------------------------------------------------------


def axis_widths(channels: int) -> Grid:
    """How many of the channels belong to t, h and w: a quarter to time, three eighths to each side."""
    return channels // 4, channels // 8 * 3, channels // 8 * 3


def sinusoids_at(positions: Tensor, dim: int) -> Tensor:
    """The position table that CogVideoX adds to the tokens: sines and cosines of t, w, h, (S, 3) -> (S, D).

    Rows and columns are divided by 1.875, the interpolation of the released models.
    """
    t, h, w = positions.float().unbind(1)
    waves = [
        sinusoids(p, n).roll(n // 2, -1)  # here sines come first
        for p, n in zip((t, w / 1.875, h / 1.875), axis_widths(dim), strict=True)
    ]
    return torch.cat(waves, 1)


# --- the block -----------------------------------------------------------------------------------

# A block works on a list of token streams (B, ., D): [text, video], or [video] in a model without text.


class AdaptiveNorm(nn.Module):
    """LayerNorm whose scale and shift, and a gate for the update, come from the timestep."""

    def __init__(self, config: CogVideoXConfig):
        super().__init__()
        streams = 1 if config.text_embed_dim is None else 2
        self.linear = nn.Linear(config.time_embed_dim, streams * 3 * config.dim)
        self.norm = nn.LayerNorm(config.dim, config.norm_eps)
        for parameter in self.linear.parameters():
            nn.init.zeros_(parameter)  # gates of zero: an untrained block is the identity

    def forward(self, streams: list[Tensor], time: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Streams (B, ., D) and time (B, time_embed_dim) -> normed streams, gates (B, 1, D)."""
        # The projection holds video first, then text.
        modulation = self.linear(F.silu(time))[:, None].chunk(len(streams), -1)[::-1]
        shifts, scales, gates = zip(*(m.chunk(3, -1) for m in modulation), strict=True)
        normed = [self.norm(x) * (1 + b) + a for x, a, b in zip(streams, shifts, scales, strict=True)]
        return normed, list(gates)


class Attention(nn.Module):
    """Multi-head attention; queries and keys are normed within each head, then rotated."""

    #: Devices that share the tokens, see :mod:`vera_lite.backbone.context`.
    context_group: Any = None

    def __init__(self, config: CogVideoXConfig):
        super().__init__()
        dim, d = config.dim, config.attention_head_dim
        self.heads = config.num_attention_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])  # "to_out.0", as in diffusers
        self.norm_q, self.norm_k = (nn.LayerNorm(d, eps=1e-6) for _ in range(2))

    def forward(
        self, x: Tensor, rotary: Tensor, memory: Tensor | None = None, memory_rotary: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            x: (B, S, D), the tokens of the queries; of a shared sequence this device's only.
            rotary: (2, S, d), of all of them.
            memory, memory_rotary: the tokens of keys and values, if they are not x. Then nothing is shared.

        Returns:
            (B, S, D).
        """
        group, tokens = None, rotary.shape[1]
        if memory is None:
            group = self.context_group
            rotary = split(rotary, group)
            memory, memory_rotary = x, rotary
        q = rotate(self.norm_q(self._heads(self.to_q(x))), rotary)  # (B, S, H, d)
        k = rotate(self.norm_k(self._heads(self.to_k(memory))), memory_rotary)
        v = self._heads(self.to_v(memory))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        out = ulysses(attend, q, k, v, tokens, group)  # (B, H, S, d)
        return self.to_out[0](out.transpose(1, 2).flatten(-2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class CogVideoXBlock(nn.Module):
    """Joint self-attention of all streams, then a feed-forward layer, both gated by the timestep."""

    def __init__(self, config: CogVideoXConfig):
        super().__init__()
        self.norm1, self.attn1 = AdaptiveNorm(config), Attention(config)
        self.norm2, self.ff = AdaptiveNorm(config), FeedForward(config.dim, 4 * config.dim)

    def forward(self, streams: list[Tensor], time: Tensor, rotary: Tensor) -> list[Tensor]:
        """
        Args:
            streams: [text (B, T, D), video (B, S, D)] or [video].
            time: embedded timestep (B, time_embed_dim).
            rotary: (2, T + S, d), of all of them.

        Returns:
            The streams, updated.
        """
        normed, gates = self.norm1(streams, time)
        attended = self.attn1(torch.cat(normed, 1), rotary).split([x.shape[1] for x in streams], 1)
        streams = [x + gate * update for x, gate, update in zip(streams, gates, attended, strict=True)]
        normed, gates = self.norm2(streams, time)
        return [x + gate * self.ff(h) for x, gate, h in zip(streams, gates, normed, strict=True)]


# --- the transformer -----------------------------------------------------------------------------


class PatchEmbed(nn.Module):
    """Latents and text into tokens.

    Args:
        config: sizes.
        positions: (n, 3), of the video tokens in the table of added positions.
        foreground_channels: latent channels of a second video with its own projection; 0: both videos share
            one.
    """

    pos_embedding: Tensor

    def __init__(self, config: CogVideoXConfig, positions: Tensor, foreground_channels: int = 0):
        super().__init__()
        self.config, p, dim = config, config.patch_size, config.dim
        self.proj = nn.Conv2d(config.in_channels, dim, p, p)
        self.fg_proj = nn.Conv2d(foreground_channels, dim, p, p) if foreground_channels else None
        self.text_proj = None if config.text_embed_dim is None else nn.Linear(config.text_embed_dim, dim)
        if config.use_learned_positional_embeddings:
            # "Learned" by whoever trained the checkpoint; diffusers and this file keep it as a buffer.
            table = F.pad(sinusoids_at(positions, dim), (0, 0, config.max_text_seq_length, 0))
            self.register_buffer("pos_embedding", table[None])

    def forward(self, video: Tensor, text: Tensor | None, foreground: Tensor | None = None) -> list[Tensor]:
        """
        Args:
            video: (B, in_channels, t, h, w).
            text: features (B, T, text_embed_dim); None for a model without text, and only for one.
            foreground: latents of a second video of the same size.

        Returns:
            [text (B, T, D), video (B, S or 2S, D)] or [video]; foreground tokens stand last.
        """
        if (text is None) != (self.text_proj is None):
            raise ValueError(
                "this model was built without text: give no features."
                if self.text_proj is None
                else "this model needs text features: without a prompt, give those of the empty one."
            )
        tokens = self._patches(video, self.proj)
        if foreground is not None:
            tokens = torch.cat([tokens, self._patches(foreground, self.fg_proj or self.proj)], 1)
        streams = [tokens] if self.text_proj is None else [self.text_proj(text), tokens]
        if self.config.use_learned_positional_embeddings:
            return self._placed(streams, self.config.grid(video.shape))
        return streams

    def _patches(self, latents: Tensor, proj: nn.Conv2d) -> Tensor:
        # The windows do not overlap, so the convolution is one matrix product. Its result has the dtype of
        # the weights: under autocast the residual stream stays in float32.
        p = self.config.patch_size
        patches = rearrange(latents, "b c t (h p) (w q) -> b (t h w) (c p q)", p=p, q=p)
        return F.linear(patches, proj.weight.flatten(1), proj.bias).to(proj.weight.dtype)

    def _placed(self, streams: list[Tensor], grid: Grid) -> list[Tensor]:
        if grid != self.config.sample_grid:
            raise ValueError(
                f"this model's position table is for {self.config.sample_grid} tokens, not {grid}; without "
                "use_learned_positional_embeddings it takes any size."
            )
        words = self.config.max_text_seq_length
        *text, video = streams
        if text and text[0].shape[1] != words:
            raise ValueError(f"this model takes {words} text tokens, not {text[0].shape[1]}: pad them.")
        text = [x + self.pos_embedding[:, :words] for x in text]
        return [*text, video + self.pos_embedding[:, words : words + video.shape[1]]]


class TimeEmbedding(TwoLayers):
    """Timesteps (B,) in [0, 1000] -> (B, time_embed_dim)."""

    def __init__(self, config: CogVideoXConfig):
        super().__init__(config.dim, config.time_embed_dim, F.silu)

    def forward(self, timestep: Tensor) -> Tensor:
        waves = sinusoids(timestep, self.linear_1.in_features)
        return super().forward(waves.type_as(self.linear_1.weight))


class AdaptiveNormOut(nn.Module):
    """LayerNorm with scale and shift from the timestep, before the output projection."""

    def __init__(self, config: CogVideoXConfig):
        super().__init__()
        self.linear = nn.Linear(config.time_embed_dim, 2 * config.dim)
        self.norm = nn.LayerNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = self.linear(F.silu(time))[:, None].chunk(2, -1)
        return self.norm(x) * (1 + scale) + shift


class CogVideoXTransformer(nn.Module):
    """Embedding, blocks and head for a system to run; the arguments are those of :class:`PatchEmbed`."""

    #: Devices that share the tokens, see :mod:`vera_lite.backbone.context`.
    context_group: Any = None

    def __init__(self, config: CogVideoXConfig, positions: Tensor, foreground_channels: int = 0):
        super().__init__()
        self.config = config
        #: What a backward pass keeps, see :func:`vera_lite.backbone.checkpointing.run_block`.
        self.checkpointing = "none"
        self.patch_embed = PatchEmbed(config, positions, foreground_channels)
        self.time_embedding = TimeEmbedding(config)
        self.transformer_blocks = nn.ModuleList(CogVideoXBlock(config) for _ in range(config.num_layers))
        self.norm_final = nn.LayerNorm(config.dim, config.norm_eps)
        self.norm_out = AdaptiveNormOut(config)
        self.proj_out = nn.Linear(config.dim, config.patch_size**2 * config.out_channels)
        for parameter in (*self.norm_out.linear.parameters(), *self.proj_out.parameters()):
            nn.init.zeros_(parameter)  # an untrained network predicts zero

    @property
    def blocks(self) -> nn.ModuleList:
        return self.transformer_blocks

    def rotary(self, positions: Tensor, text_tokens: int = 0) -> Tensor:
        """Rotary table (2, T + S, d) for the blocks, of T text tokens and then positions (S, 3).

        Text has no positions. Its rows turn by nothing: they are those of (0, 0, 0).
        """
        places = F.pad(positions, (0, 0, text_tokens, 0))
        return rotary_table(places, axis_widths(self.config.attention_head_dim))

    def head(self, tokens: Tensor, time: Tensor, grid: Grid) -> Tensor:
        """Video tokens (B, S, D) of a (t, h, w) grid -> prediction (B, out_channels, t, h, w)."""
        patches = self.proj_out(self.norm_out(self.norm_final(tokens), time))
        (t, h, w), p = grid, self.config.patch_size
        return rearrange(patches, "b (t h w) (c p q) -> b c t (h p) (w q)", t=t, h=h, w=w, p=p, q=p)


def config_of(model: nn.Module) -> CogVideoXConfig:
    """The config of a ``diffusers.CogVideoXTransformer3DModel``.

    Raises:
        UserError: it is CogVideoX-2B (no rotary positions) or 1.5 (patches in time).
    """
    theirs: Any = model.config
    if not theirs.use_rotary_positional_embeddings or theirs.patch_size_t is not None:
        raise UserError("this is CogVideoX-2B or 1.5: give the 5 B model of version 1.0.")
    return CogVideoXConfig(**{f.name: theirs[f.name] for f in fields(CogVideoXConfig)})
