"""The diffusion transformer: Wan's block, for one stream or for a Mixture of Transformers.

A Mixture of Transformers (MoT, arXiv 2411.04996) runs N token streams ("branches") side by side.
Each branch has its own weights, and all tokens meet in one self-attention. Here the N sets of
weights ("experts") are *stacked* along a leading axis of every parameter, so that a branch's linear
layer is one slice of one batched matrix product. With N = 1 this is plain Wan; with one expert and
N branches it is a single network shared by all branches.

Axis letters: N branches, E experts (N, or 1 = shared), B batch, S tokens of a branch, T text tokens,
G runs of tokens with equal timestep, D width, H heads, d = D / H. Hidden states are (N, B, S, D).
Parameter names are those of ``diffusers.WanTransformer3DModel``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from vera_lite.backbone.rotary import rotary_table, rotate
from vera_lite.errors import UserError


@dataclass(frozen=True)
class WanConfig:
    """Size of a Wan transformer; the fields carry the names of diffusers' config.json.

    Attributes:
        patch_size: (t, h, w) latent cells in a token.
        num_attention_heads, attention_head_dim: D is their product.
        in_channels, out_channels: latent channels read and predicted.
        text_dim: width of the text features; None builds a model without text embedding, whose blocks
            are each given a context of width D (RVEDiT).
        freq_dim: sinusoids of the timestep.
        ffn_dim: inner width of the feed-forward layer.
        num_layers: blocks.
        cross_attention: off: blocks have self-attention and feed-forward only (MiVE).
        cross_attn_norm: LayerNorm before cross-attention, as every released Wan has.
        eps: of all norms.
        pooled_text: also add the summed text features to the time embedding. Not in Wan; at toy
            scale it makes colours right long before cross-attention does. Starts as a no-op.
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
    pooled_text: bool = False

    @property
    def dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    def grid(self, latent_size: tuple[int, ...]) -> tuple[int, int, int]:
        """Token grid (t, h, w) of latents whose last three sizes are ``latent_size``."""
        if any(n % p for n, p in zip(latent_size, self.patch_size, strict=True)):
            raise UserError(f"latents of {tuple(latent_size)} do not divide into patches {self.patch_size}.")
        return tuple(n // p for n, p in zip(latent_size, self.patch_size, strict=True))


WAN_1_3B = WanConfig()
WAN_14B = WanConfig(num_attention_heads=40, ffn_dim=13824, num_layers=40)
WAN_TI2V_5B = WanConfig(num_attention_heads=24, ffn_dim=14336, in_channels=48, out_channels=48)


# --- layers whose parameters carry a leading expert axis -----------------------------------------


class StackedLinear(nn.Module):
    """E linear layers in one: (N, ..., in) -> (N, ..., out), expert e applied to x[e].

    With E = 1 the one expert serves every branch.
    """

    def __init__(self, experts: int, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(experts, out_features))
        bound = math.sqrt(6 / (in_features + out_features))  # Xavier, of each expert by itself
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.shape[0] == 1:
            return F.linear(x, self.weight[0], self.bias[0])
        y = torch.baddbmm(self.bias[:, None], x.flatten(1, -2), self.weight.transpose(1, 2))
        return y.unflatten(1, x.shape[1:-1])


class StackedRMSNorm(nn.Module):
    """x / rms(x) * weight over the whole width ("across heads"), (N, B, S, D) -> the same."""

    def __init__(self, experts: int, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(experts, dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.shape[0] == 1:
            return F.rms_norm(x, x.shape[-1:], self.weight[0].type_as(x), self.eps)
        return F.rms_norm(x, x.shape[-1:], eps=self.eps) * self.weight[:, None, None].type_as(x)


class StackedLayerNorm(nn.Module):
    """LayerNorm in float32 with E affine maps, (N, B, S, D) -> the same."""

    def __init__(self, experts: int, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(experts, dim))
        self.bias = nn.Parameter(torch.zeros(experts, dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.float(), x.shape[-1:], eps=self.eps)
        return torch.addcmul(self.bias[:, None, None], normed, self.weight[:, None, None]).type_as(x)


# --- adaptive layer norm -------------------------------------------------------------------------


def timestep_runs(timestep: Tensor, tokens: int) -> tuple[Tensor, list[int]]:
    """Timesteps as runs of equal neighbours, so that each is embedded once.

    Wan2.1 gives one timestep a clip; Wan2.2-TI2V one a token, of which only a few differ (clean
    first frame, noisy rest). A dense (B, S, 6D) modulation would cost gigabytes to say the same.

    Args:
        timestep: (B,) or (B, S).
        tokens: S.

    Returns:
        Timesteps of the runs, (B, G), and the runs' lengths, which add up to S.
    """
    if timestep.ndim == 1:
        return timestep[:, None], [tokens]
    if timestep.shape[1] != tokens:
        raise UserError(f"got {timestep.shape[1]} timesteps a clip for {tokens} tokens.")
    starts = (timestep[:, 1:] != timestep[:, :-1]).any(0).nonzero()[:, 0] + 1
    starts = [0, *starts.tolist()]
    return timestep[:, starts], [b - a for a, b in zip(starts, [*starts[1:], tokens], strict=True)]


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, runs: list[int], eps: float) -> Tensor:
    """norm(x) * (1 + scale) + shift in float32; scale and shift are (E, B, G, D), one a run."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    if len(runs) == 1:
        return torch.addcmul(shift, normed, 1 + scale).type_as(x)
    parts = [
        torch.addcmul(shift[:, :, g : g + 1], part, 1 + scale[:, :, g : g + 1])
        for g, part in enumerate(normed.split(runs, dim=2))
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)).type_as(x)


def gated_residual(x: Tensor, update: Tensor, gate: Tensor, runs: list[int]) -> Tensor:
    """x + gate * update in float32, gate (E, B, G, D)."""
    if len(runs) == 1:
        return torch.addcmul(x.float(), update.float(), gate).type_as(x)
    parts = [
        torch.addcmul(a.float(), b.float(), gate[:, :, g : g + 1])
        for g, (a, b) in enumerate(zip(x.split(runs, 2), update.split(runs, 2), strict=True))
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)).type_as(x)


# --- attention -----------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, given: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v; (B, H, tokens, d) each. ``given`` (B, tokens) is False at keys that are
    only padding.

    Under CPU autocast it runs in float32: there the backward pass in bfloat16 is three times slower,
    while bfloat16 matrix products are several times faster.
    """
    mask = None if given is None else given[:, None, None]
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask)
    return F.scaled_dot_product_attention(q, k, v, mask)


class Attention(nn.Module):
    """Projections and norms of one attention; the block decides who attends to whom."""

    def __init__(self, config: WanConfig, experts: int, kv_experts: int):
        super().__init__()
        dim = config.dim
        self.heads = config.num_attention_heads
        self.to_q = StackedLinear(experts, dim, dim)
        self.to_k = StackedLinear(kv_experts, dim, dim)
        self.to_v = StackedLinear(kv_experts, dim, dim)
        self.to_out = nn.ModuleList([StackedLinear(experts, dim, dim)])  # "to_out.0", as in diffusers
        self.norm_q = StackedRMSNorm(experts, dim, config.eps)
        self.norm_k = StackedRMSNorm(kv_experts, dim, config.eps)

    def split(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., H, d)."""
        return x.unflatten(-1, (self.heads, -1))


class SelfAttention(Attention):
    """Joint self-attention: every token of every branch sees all N * S tokens of its clip.

    Branches use the same rotary positions. With ``joint=False`` (an ablation) each branch sees only
    its own S tokens.
    """

    def __init__(self, config: WanConfig, experts: int, joint: bool):
        super().__init__(config, experts, experts)
        self.joint = joint

    def forward(self, x: Tensor, rotary: Tensor, given: Tensor | None = None) -> Tensor:
        """x (N, B, S, D), rotary (S, d/2), ``given`` (B, S) of one branch, see :func:`attend` ->
        (N, B, S, D)."""
        branches = x.shape[0]
        q = rotate(self.split(self.norm_q(self.to_q(x))), rotary)  # (N, B, S, H, d)
        k = rotate(self.split(self.norm_k(self.to_k(x))), rotary)
        v = self.split(self.to_v(x))
        if self.joint:
            q, k, v = (y.permute(1, 3, 0, 2, 4).flatten(2, 3) for y in (q, k, v))  # (B, H, N * S, d)
            out = attend(q, k, v) if given is None else attend(q, k, v, given)
            out = out.unflatten(2, (branches, -1)).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (y.transpose(2, 3).flatten(0, 1) for y in (q, k, v))  # (N * B, H, S, d)
            out = attend(q, k, v, given).unflatten(0, (branches, -1)).transpose(2, 3)
        return self.to_out[0](out.flatten(-2))  # (N, B, S, D)


class CrossAttention(Attention):
    """Every branch reads the text. With one key/value expert the text memory is shared."""

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x (N, B, S, D), text (1 or N, B, T, D) -> (N, B, S, D)."""
        branches = x.shape[0]
        if self.to_k.weight.shape[0] > 1:
            text = text.expand(branches, -1, -1, -1)
        q = self.split(self.norm_q(self.to_q(x)))
        k = self.split(self.norm_k(self.to_k(text)))
        v = self.split(self.to_v(text))
        if k.shape[0] < branches:
            # One text memory: the branches' queries stand side by side in one sequence.
            q = q.permute(1, 3, 0, 2, 4).flatten(2, 3)  # (B, H, N * S, d)
            out = attend(q, k[0].transpose(1, 2), v[0].transpose(1, 2))
            out = out.unflatten(2, (branches, -1)).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (y.transpose(2, 3).flatten(0, 1) for y in (q, k, v))  # (N * B, H, ., d)
            out = attend(q, k, v).unflatten(0, (branches, -1)).transpose(2, 3)
        return self.to_out[0](out.flatten(-2))  # (N, B, S, D)


class FeedForward(nn.Module):
    """Linear, GELU (tanh), Linear; named as diffusers names it."""

    class _Project(nn.Module):
        def __init__(self, experts: int, dim: int, inner: int):
            super().__init__()
            self.proj = StackedLinear(experts, dim, inner)

        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(self.proj(x), approximate="tanh")

    def __init__(self, experts: int, dim: int, inner: int):
        super().__init__()
        self.net = nn.ModuleList(
            [self._Project(experts, dim, inner), nn.Identity(), StackedLinear(experts, inner, dim)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


# --- the block -----------------------------------------------------------------------------------


class WanBlock(nn.Module):
    """One Wan block over N branches: joint self-attention, cross-attention, feed-forward.

    Args:
        config: sizes.
        experts: E, sets of weights: the number of branches, or 1.
        joint: see :class:`SelfAttention`.
        share_text_kv: one key/value projection of the text for all branches (``norm_k`` with it).
    """

    def __init__(self, config: WanConfig, experts: int = 1, joint: bool = True, share_text_kv: bool = False):
        super().__init__()
        dim = config.dim
        self.eps = config.eps
        self.attn1 = SelfAttention(config, experts, joint)
        self.attn2 = self.norm2 = None
        if config.cross_attention:
            self.attn2 = CrossAttention(config, experts, 1 if share_text_kv else experts)
            normed = config.cross_attn_norm
            self.norm2 = StackedLayerNorm(experts, dim, config.eps) if normed else nn.Identity()
        self.ffn = FeedForward(experts, dim, config.ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(experts, 6, dim) / dim**0.5)

    def forward(
        self,
        x: Tensor,
        text: Tensor | None,
        modulation: Tensor,
        runs: list[int],
        rotary: Tensor,
        given: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            x: hidden states (N, B, S, D).
            text: text features (1 or N, B, T, D); None without cross-attention.
            modulation: projected time embedding (1 or N, B, G, 6, D).
            runs: G run lengths, adding up to S.
            rotary: (S, d/2) complex.
            given: (B, S), False at padding among x, which nothing attends to (one branch only).

        Returns:
            (N, B, S, D).
        """
        table = self.scale_shift_table[:, None, None] + modulation.float()  # (E, B, G, 6, D)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = table.unbind(-2)  # (E, B, G, D) each
        attended = self.attn1(modulated_norm(x, scale, shift, runs, self.eps), rotary, given=given)
        x = gated_residual(x, attended, gate, runs)
        if self.attn2 is not None:
            x = x + self.attn2(self.norm2(x), text)
        fed = self.ffn(modulated_norm(x, ffn_scale, ffn_shift, runs, self.eps))
        return gated_residual(x, fed, ffn_gate, runs)


# --- embeddings ----------------------------------------------------------------------------------


class _TwoLayers(nn.Module):
    def __init__(self, experts: int, in_features: int, dim: int):
        super().__init__()
        self.linear_1 = StackedLinear(experts, in_features, dim)
        self.linear_2 = StackedLinear(experts, dim, dim)


class ConditionEmbedder(nn.Module):
    """Timestep and text features, embedded. E = 1: shared by all branches."""

    def __init__(self, config: WanConfig, experts: int = 1):
        super().__init__()
        dim = config.dim
        self.freq_dim = config.freq_dim
        self.time_embedder = _TwoLayers(experts, config.freq_dim, dim)
        self.time_proj = StackedLinear(experts, dim, 6 * dim)
        self.text_embedder = None if config.text_dim is None else _TwoLayers(experts, config.text_dim, dim)
        self.pooled_text = StackedLinear(experts, dim, dim) if config.pooled_text else None
        if self.pooled_text is not None:
            nn.init.zeros_(self.pooled_text.weight)

    def sinusoids(self, timestep: Tensor) -> Tensor:
        """(...,) in [0, 1000] -> (..., freq_dim): cosines, then sines, always in float32."""
        half = self.freq_dim // 2
        frequency = torch.exp(-math.log(10000) * torch.arange(half, device=timestep.device) / half)
        angle = timestep.float()[..., None] * frequency
        return torch.cat([angle.cos(), angle.sin()], dim=-1)

    def forward(
        self, timestep: Tensor, text: Tensor | None, pooled: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """
        Args:
            timestep: (B, G).
            text: (B, T, text_dim); None in a model without text embedding.
            pooled: (B, T, D), what ``pooled_text`` sums in such a model.

        Returns:
            Time embedding (E, B, G, D), its six projections (E, B, G, 6, D), text (E, B, T, D) or None.
        """
        experts = self.time_proj.weight.shape[0]
        if text is not None:
            text = self.text_embedder.linear_1(text.expand(experts, *text.shape))
            text = self.text_embedder.linear_2(F.gelu(text, approximate="tanh"))
        time = self.sinusoids(timestep).type_as(self.time_embedder.linear_1.weight)
        time = self.time_embedder.linear_1(time.expand(experts, *time.shape))
        time = self.time_embedder.linear_2(F.silu(time))
        if self.pooled_text is not None:
            summed = text if pooled is None else pooled[None]
            time = time + self.pooled_text(summed.sum(2, keepdim=True))
        return time, self.time_proj(F.silu(time)).unflatten(-1, (6, -1)), text


# --- the transformer -----------------------------------------------------------------------------

_ATTENTION_OPS = [
    op.default
    for name in (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
    if (op := getattr(torch.ops.aten, name, None)) is not None
]


def _keep_attention(_context, op, *_args, **_kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _ATTENTION_OPS else CheckpointPolicy.PREFER_RECOMPUTE


class WanTransformer(nn.Module):
    """Wan's video transformer over N branches.

    Args:
        config: sizes.
        branches: N token streams.
        experts: E, sets of weights; N (a Mixture of Transformers, the default) or 1 (all share).
        joint: branches attend to each other.
        share_text_kv: see :class:`WanBlock`.
        share_condition_embedder: one time and text embedding for all branches.
    """

    def __init__(
        self,
        config: WanConfig,
        branches: int = 1,
        *,
        experts: int | None = None,
        joint: bool = True,
        share_text_kv: bool = False,
        share_condition_embedder: bool = False,
    ):
        super().__init__()
        experts = branches if experts is None else experts
        if experts not in (1, branches):
            raise UserError(f"{branches} branches need {branches} experts or one, not {experts}.")
        self.config, self.branches, self.experts = config, branches, experts
        #: What a backward pass keeps: "none" checkpoints nothing, "full" keeps only block inputs,
        #: "attention" also the outputs of attention, which cost most to compute again.
        self.checkpointing = "none"
        cells = math.prod(config.patch_size)
        self.patch_embedding = StackedLinear(experts, config.in_channels * cells, config.dim)
        self.condition_embedder = ConditionEmbedder(config, 1 if share_condition_embedder else experts)
        self.blocks = nn.ModuleList(
            WanBlock(config, experts, joint, share_text_kv) for _ in range(config.num_layers)
        )
        self.proj_out = StackedLinear(experts, config.dim, config.out_channels * cells)
        nn.init.zeros_(self.proj_out.weight)  # an untrained network predicts zero
        self.scale_shift_table = nn.Parameter(torch.randn(experts, 2, config.dim) / config.dim**0.5)

    def patchify(self, latents: Tensor) -> Tensor:
        """(..., C, t, h, w) -> (..., S, C * cells), one row a token."""
        self.config.grid(latents.shape[-3:])
        p, q, r = self.config.patch_size
        pattern = "... c (t p) (h q) (w r) -> ... (t h w) (c p q r)"
        return rearrange(latents, pattern, p=p, q=q, r=r)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor | Sequence[Tensor],
        added_tokens: Tensor | float = 0.0,
        pooled: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            latents: noisy latents (N, B, C, t, h, w).
            timestep: (B,), or (B, S) for a timestep a token; 0 is clean, 1000 is noise.
            text: text features (B, T, text_dim). Without text embedding: the context of each block,
                (B, T, D), where T may differ from block to block.
            added_tokens: added to the embedded tokens, broadcastable to (N, B, S, D): where systems
                put what they condition on.
            pooled: (B, T, D), what ``pooled_text`` sums in a model without text embedding.

        Returns:
            Prediction (N, B, out_channels, t, h, w).
        """
        grid = self.config.grid(latents.shape[-3:])
        x = self.patch_embedding(self.patchify(latents)) + added_tokens  # (N, B, S, D)
        x = x.to(self.scale_shift_table.dtype)  # under autocast the residual stream keeps float32
        values, runs = timestep_runs(timestep, x.shape[2])  # (B, G)
        if self.config.text_dim is None:
            time, modulation, _ = self.condition_embedder(values, None, pooled)
            contexts = [context[None] for context in text]
        else:
            time, modulation, embedded = self.condition_embedder(values, text)
            contexts = [embedded] * len(self.blocks)
        rotary = rotary_table(self.config.attention_head_dim, grid, device=x.device)
        for block, context in zip(self.blocks, contexts, strict=True):
            x = self.run(block, x, context, modulation, runs, rotary)
        return self.head(x, time, runs, grid)

    def head(self, x: Tensor, time: Tensor, runs: list[int], grid: tuple[int, int, int]) -> Tensor:
        """Hidden states (N, B, S, D) and the runs' time embeddings (E, B, G, D) -> (N, B, C, t, h, w)."""
        shift, scale = (self.scale_shift_table[:, None, None] + time.float()[..., None, :]).unbind(-2)
        x = self.proj_out(modulated_norm(x, scale, shift, runs, self.config.eps))
        (t, h, w), (p, q, r) = grid, self.config.patch_size
        return rearrange(x, "n b (t h w) (p q r c) -> n b c (t p) (h q) (w r)", t=t, h=h, w=w, p=p, q=q, r=r)

    def run(self, block: WanBlock, *inputs) -> Tensor:
        """``block(*inputs)``, keeping for the backward pass what :attr:`checkpointing` says."""
        if self.checkpointing == "none" or not torch.is_grad_enabled():
            return block(*inputs)
        if self.checkpointing == "full":
            return checkpoint(block, *inputs, use_reentrant=False)
        if self.checkpointing == "attention":
            return checkpoint(
                block,
                *inputs,
                use_reentrant=False,
                context_fn=lambda: create_selective_checkpoint_contexts(_keep_attention),
            )
        raise UserError(f"checkpointing is none, full or attention, not {self.checkpointing!r}.")
