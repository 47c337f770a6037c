"""Wan's video diffusion transformer (arXiv 2503.20314), in plain modules.

    embed:   PatchEmbedding of the latents, ConditionEmbedder of time and text
    blocks:  self-attention, cross-attention to the text, feed-forward; modulated by the time
    head:    tokens -> prediction

A system may run these three steps itself and add its own between them. Parameter names and shapes are those
of ``diffusers.WanTransformer3DModel``.

Axis letters: B batch, S tokens, T text tokens, G runs of tokens with one timestep, D width, H heads of
d channels.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vera_lite.backbone.checkpointing import run_block
from vera_lite.backbone.context import gather, split, split_runs, ulysses
from vera_lite.backbone.float32 import Float32, Float32LayerNorm, Float32Linear
from vera_lite.backbone.rotary import Grid, grid_positions, rotary_table, rotate
from vera_lite.errors import check_sizes


@dataclass(frozen=True)
class WanConfig:
    """Size of a Wan transformer; the fields carry the names of diffusers' config.json.

    Attributes:
        patch_size: (t, h, w) latent cells in a token.
        num_attention_heads, attention_head_dim: D is their product.
        in_channels, out_channels: latent channels read and predicted.
        text_dim: width of the text features. None: there is no text embedding, and blocks read contexts of
            width D.
        freq_dim: sinusoids of the timestep.
        ffn_dim: inner width of the feed-forward layer.
        num_layers: blocks.
        cross_attention: False: blocks have self-attention and feed-forward only (MiVE).
        cross_attn_norm: LayerNorm before cross-attention, as in every released Wan.
        eps: of all norms.
        summed_text: also add the sum of the text features to the time embedding; without effect before
            training. Not in Wan; at toy scale colours come out right long before cross-attention learns them.
    """

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 12
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int | None = 4096
    freq_dim: int = 256
    ffn_dim: int = 8960
    num_layers: int = 30
    cross_attention: bool = True
    cross_attn_norm: bool = True
    eps: float = 1e-6
    summed_text: bool = False

    def __post_init__(self):
        check_sizes(self, "num_attention_heads", "attention_head_dim", "patch_size", "ffn_dim", "freq_dim")

    @property
    def dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def rotary_widths(self) -> Grid:
        """Channels of a head that time, height and width turn."""
        side = 2 * (self.attention_head_dim // 6)
        return self.attention_head_dim - 2 * side, side, side

    def grid(self, latent_size: Sequence[int]) -> Grid:
        """Token grid (t, h, w) of latents of size (..., t, h, w); ValueError if patches do not fit."""
        (t, h, w), (p, q, r) = latent_size[-3:], self.patch_size
        if t % p or h % q or w % r:
            raise ValueError(f"latents of {(t, h, w)} do not divide into patches {self.patch_size}.")
        return t // p, h // q, w // r


WAN_1_3B = WanConfig()
WAN_14B = WanConfig(num_attention_heads=40, ffn_dim=13824, num_layers=40)
WAN_TI2V_5B = WanConfig(num_attention_heads=24, ffn_dim=14336, in_channels=48, out_channels=48)


# --- adaptive layer norm -------------------------------------------------------------------------


def timestep_runs(timestep: Tensor, tokens: int) -> tuple[Tensor, list[int]]:
    """Timesteps (B,) or (B, S) as runs of equal neighbours: one timestep per run (B, G), and run lengths.

    Wan2.2-TI2V has one timestep per token, but few different ones (clean first frame, noisy rest). One
    modulation per token, (B, S, 6D), would take gigabytes.
    """
    if timestep.ndim == 1:
        return timestep[:, None], [tokens]
    if timestep.shape[1] != tokens:
        raise ValueError(f"got {timestep.shape[1]} timesteps per clip for {tokens} tokens.")
    changes = (timestep[:, 1:] != timestep[:, :-1]).any(0).nonzero()[:, 0] + 1
    starts = [0, *changes.tolist()]
    return timestep[:, starts], [b - a for a, b in zip(starts, [*starts[1:], tokens], strict=True)]


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, runs: list[int], eps: float) -> Tensor:
    """norm(x) * (1 + scale) + shift in float32; x (B, S, D), shift and scale (B, G, D), one per run."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    modulated = _by_run(lambda part, a, b: torch.addcmul(a, part, 1 + b), runs, [normed], [shift, scale])
    return modulated.type_as(x)


def gated_residual(x: Tensor, update: Tensor, gate: Tensor, runs: list[int]) -> Tensor:
    """x + gate * update in float32; x and update (B, S, D), gate (B, G, D), one per run."""
    return _by_run(torch.addcmul, runs, [x.float(), update.float()], [gate]).type_as(x)


def _by_run(function, runs: list[int], tokens: list[Tensor], vectors: list[Tensor]) -> Tensor:
    """``function`` of the tokens (B, S, D) of each run and of its vectors (B, G, D)."""
    if len(runs) == 1:
        return function(*tokens, *vectors)
    parts = [x.split(runs, 1) for x in tokens] + [v.split(1, 1) for v in vectors]
    return torch.cat([function(*part) for part in zip(*parts, strict=True)], 1)


# --- attention -----------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v; (B, H, tokens, d) each.

    ``key_padding_mask`` (B, tokens) is False at keys that are only padding.
    """
    mask = None if key_padding_mask is None else key_padding_mask[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, mask)


class RMSNorm(nn.RMSNorm):
    """torch's with the weight cast to the input's dtype: it has no fused kernel for two dtypes (autocast)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.type_as(x), self.eps)


class Attention(nn.Module):
    """Projections (B, S, D) -> (B, S, H, d) and back. Norms run over the whole width, across heads."""

    def __init__(self, config: WanConfig):
        super().__init__()
        dim = config.dim
        self.heads = config.num_attention_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])  # "to_out.0", as in diffusers
        self.norm_q, self.norm_k = (RMSNorm(dim, config.eps) for _ in range(2))

    def queries(self, x: Tensor) -> Tensor:
        return self.norm_q(self.to_q(x)).unflatten(-1, (self.heads, -1))

    def keys(self, x: Tensor) -> Tensor:
        return self.norm_k(self.to_k(x)).unflatten(-1, (self.heads, -1))

    def values(self, x: Tensor) -> Tensor:
        return self.to_v(x).unflatten(-1, (self.heads, -1))

    def out(self, attended: Tensor) -> Tensor:
        """(B, H, S, d) -> (B, S, D)."""
        return self.to_out[0](attended.transpose(1, 2).flatten(-2))


class SelfAttention(Attention):
    #: Devices that share the tokens, see :mod:`vera_lite.backbone.context`.
    context_group: Any = None

    def project(self, x: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, S, D), rotary (2, S, d) -> queries, keys, values (B, H, S, d). Of a shared sequence x is this
        device's part, and so are the results."""
        rotary = split(rotary, self.context_group)
        qkv = rotate(self.queries(x), rotary), rotate(self.keys(x), rotary), self.values(x)
        q, k, v = (y.transpose(1, 2) for y in qkv)
        return q, k, v

    def forward(self, x: Tensor, rotary: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """x (B, S, D), rotary (2, S, d), key_padding_mask (B, S) -> (B, S, D)."""
        attend_all = partial(attend, key_padding_mask=key_padding_mask)
        qkv = self.project(x, rotary)
        return self.out(ulysses(attend_all, *qkv, rotary.shape[1], self.context_group))


class CrossAttention(Attention):
    """Every token attends to the text, which has no positions."""

    def memory(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """text (B, T, D) -> keys and values (B, H, T, d)."""
        return self.keys(text).transpose(1, 2), self.values(text).transpose(1, 2)

    def forward(
        self, x: Tensor, text: Tensor | tuple[Tensor, Tensor], key_padding_mask: Tensor | None = None
    ) -> Tensor:
        """x (B, S, D), text (B, T, D) or its :meth:`memory`, key_padding_mask (B, T) -> (B, S, D)."""
        k, v = text if isinstance(text, tuple) else self.memory(text)
        return self.out(attend(self.queries(x).transpose(1, 2), k, v, key_padding_mask))


class FeedForward(nn.Module):
    """Linear, GELU (tanh), Linear: (B, S, D) -> (B, S, D); named as diffusers names them."""

    def __init__(self, dim: int, inner: int):
        super().__init__()
        first = nn.Sequential(OrderedDict(proj=nn.Linear(dim, inner), gelu=nn.GELU("tanh")))
        self.net = nn.Sequential(first, nn.Identity(), nn.Linear(inner, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


# --- the block -----------------------------------------------------------------------------------


class WanBlock(Float32):
    """Self-attention, cross-attention, feed-forward; the first and the last gated by the timestep.

    :meth:`before` and :meth:`after` are the parts before and after self-attention, for systems in which
    several towers attend jointly.
    """

    def __init__(self, config: WanConfig):
        super().__init__()
        dim = config.dim
        self.eps = config.eps
        self.attn1 = SelfAttention(config)
        self.attn2, self.norm2 = None, nn.Identity()
        if config.cross_attention:
            self.attn2 = CrossAttention(config)
            self.norm2 = Float32LayerNorm(dim, config.eps) if config.cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(dim, config.ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        x: Tensor,
        text: Tensor | None,
        modulation: Tensor,
        runs: list[int],
        rotary: Tensor,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            x: hidden states (B, S, D).
            text: text features (B, T, D); None without cross-attention.
            modulation: projected time embedding (B, G, 6, D).
            runs: G run lengths, whose sum is S.
            rotary: (2, S, d).
            key_padding_mask: (B, S), False at tokens that are only padding: nothing attends to them.

        Returns:
            (B, S, D).
        """
        normed, vectors = self.before(x, modulation, runs)
        return self.after(x, self.attn1(normed, rotary, key_padding_mask), vectors, text, runs)

    def before(self, x: Tensor, modulation: Tensor, runs: list[int]) -> tuple[Tensor, list[Tensor]]:
        """The input of self-attention (B, S, D), and the modulation vectors of :meth:`after`."""
        shift, scale, *vectors = (self.scale_shift_table + modulation.float()).unbind(-2)  # (B, G, D)
        return modulated_norm(x, shift, scale, runs, self.eps), vectors

    def after(
        self, x: Tensor, attended: Tensor, vectors: list[Tensor], text: Tensor | None, runs: list[int]
    ) -> Tensor:
        """The block after self-attention, whose output is ``attended`` (B, S, D)."""
        gate, ffn_shift, ffn_scale, ffn_gate = vectors
        x = gated_residual(x, attended, gate, runs)
        if self.attn2 is not None:
            x = x + self.attn2(self.norm2(x), text)
        fed = self.ffn(modulated_norm(x, ffn_shift, ffn_scale, runs, self.eps))
        return gated_residual(x, fed, ffn_gate, runs)


# --- embeddings ----------------------------------------------------------------------------------


class PatchEmbedding(nn.Conv3d):
    """Latents (B, C, t, h, w) -> tokens (B, S, D) with the dtype of the weights.

    ``zero``: start at zero, for a condition that is added to the tokens of a pretrained model.
    """

    def __init__(self, config: WanConfig, zero: bool = False):
        super().__init__(config.in_channels, config.dim, config.patch_size, config.patch_size)
        nn.init.zeros_(self.bias)
        (nn.init.zeros_ if zero else nn.init.xavier_uniform_)(self.weight.view(config.dim, -1))

    def forward(self, latents: Tensor) -> Tensor:
        (p, q, r), latents = self.kernel_size, latents.type_as(self.weight)
        # The windows do not overlap, so one matrix product equals the convolution, and is faster. Its result
        # has the dtype of the weights: under autocast the residual stream stays in float32.
        rows = rearrange(latents, "b c (t p) (h q) (w r) -> b (t h w) (c p q r)", p=p, q=q, r=r)
        return F.linear(rows, self.weight.flatten(1), self.bias).type_as(self.weight)


def sinusoids(timestep: Tensor, width: int) -> Tensor:
    """(...,) in [0, 1000] -> (..., width): cosines, then sines, in float32."""
    half = width // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half, device=timestep.device).float() / half)
    angle = timestep.float()[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TwoLayers(nn.Module):
    """Linear, activation, Linear: (..., width) -> (..., D)."""

    def __init__(self, width: int, dim: int, activation: Callable[[Tensor], Tensor], linear=nn.Linear):
        super().__init__()
        self.linear_1, self.linear_2, self.activation = linear(width, dim), linear(dim, dim), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(x)))


class Conditions(NamedTuple):
    """What conditions the head (``time``) and all blocks (``modulation``, ``text``)."""

    time: Tensor  # of each run, (B, G, D) float32
    modulation: Tensor  # its six projections, (B, G, 6, D) float32
    text: Tensor | None  # (B, T, D); None in a model without text embedding


class ConditionEmbedder(nn.Module):
    """Embed timesteps (in float32) and text."""

    def __init__(self, config: WanConfig):
        super().__init__()
        dim, gelu = config.dim, partial(F.gelu, approximate="tanh")
        self.time_embedder = TwoLayers(config.freq_dim, dim, F.silu, Float32Linear)
        self.time_proj = Float32Linear(dim, 6 * dim)
        self.text_embedder = None if config.text_dim is None else TwoLayers(config.text_dim, dim, gelu)
        self.summed_text = Float32Linear(dim, dim) if config.summed_text else None

    def forward(self, timestep: Tensor, text: Tensor | None, summed: Tensor | None = None) -> Conditions:
        """
        Args:
            timestep: (B, G), one per run.
            text: (B, T, text_dim); None in a model without text embedding.
            summed: (B, T, D), the features for ``summed_text`` in such a model.
        """
        if self.text_embedder is not None:
            text = self.text_embedder(text)
        time = self.time_embedder(sinusoids(timestep, self.time_embedder.linear_1.in_features))
        summed = text if summed is None else summed
        if self.summed_text is not None and summed is not None:
            time = time + self.summed_text(summed.sum(1, keepdim=True))
        return Conditions(time, self.time_proj(F.silu(time)).unflatten(-1, (6, -1)), text)


# --- the transformer -----------------------------------------------------------------------------


class WanTransformer(Float32):
    """Wan's video transformer."""

    #: Devices that share the tokens, see :mod:`vera_lite.backbone.context`.
    context_group: Any = None

    def __init__(self, config: WanConfig):
        super().__init__()
        self.config = config
        #: What a backward pass keeps, see :func:`run_block`.
        self.checkpointing = "none"
        self.patch_embedding = PatchEmbedding(config)
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks = nn.ModuleList(WanBlock(config) for _ in range(config.num_layers))
        self.proj_out = nn.Linear(config.dim, config.out_channels * math.prod(config.patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.proj_out.weight)  # an untrained network predicts zero
        if (summed_text := self.condition_embedder.summed_text) is not None:
            nn.init.zeros_(summed_text.weight)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor | Sequence[Tensor],
        added_tokens: Tensor | float = 0.0,
        summed: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            latents: noisy latents (B, C, t, h, w).
            timestep: (B,), or (B, S) for one per token; 0 is clean, 1000 is noise.
            text: text features (B, T, text_dim). Without text embedding: the context of each block,
                (B, T, D), where T may differ from block to block.
            added_tokens: (B, S, D), a system's condition, which is added to the embedded tokens.
            summed: (B, T, D), the features for ``summed_text`` in a model without text embedding.

        Returns:
            Prediction (B, out_channels, t, h, w).
        """
        grid = self.config.grid(latents.shape)
        x = self.patch_embedding(latents)  # (B, S, D)
        x = (x + added_tokens).type_as(x)
        values, runs = timestep_runs(timestep, x.shape[1])  # (B, G)
        own_text = self.config.text_dim is not None
        conditions = self.condition_embedder(values, text.to(x) if own_text else None, summed)
        contexts = [conditions.text] * len(self.blocks) if own_text else text
        rotary, group = self.rotary(grid_positions(grid, device=x.device)), self.context_group
        x, mine = split(x, group), split_runs(runs, group)
        for block, context in zip(self.blocks, contexts, strict=True):
            x = run_block(self.checkpointing, block, x, context, conditions.modulation, mine, rotary)
        return self.head(gather(x, sum(runs), group), conditions.time, runs, grid)

    def rotary(self, positions: Tensor) -> Tensor:
        """Rotary table (2, S, d) of positions (S, 3), for the blocks."""
        return rotary_table(positions, self.config.rotary_widths)

    def head(self, x: Tensor, time: Tensor, runs: list[int], grid: Grid) -> Tensor:
        """Hidden states (B, S, D), time embeddings of their runs (B, G, D) -> (B, out_channels, t, h, w)."""
        shift, scale = (self.scale_shift_table + time.float()[..., None, :]).unbind(-2)
        x = self.proj_out(modulated_norm(x, shift, scale, runs, self.config.eps))
        (t, h, w), (p, q, r) = grid, self.config.patch_size
        return rearrange(x, "b (t h w) (p q r c) -> b c (t p) (h q) (w r)", t=t, h=h, w=w, p=p, q=q, r=r)
