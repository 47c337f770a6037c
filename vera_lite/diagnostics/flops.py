"""Floating-point operations of one forward pass: predicted, and counted."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from vera_lite.backbone.wan import WanConfig


class ForwardFlops(NamedTuple):
    """FLOPs of one forward pass; a multiplication and its addition are two."""

    embedding: int  #: patches, timesteps and text into tokens, and the head back into latents.
    linear: int  #: linear layers of the blocks, with the text's keys and values.
    self_attention: int  #: the two matrix products of self-attention in all blocks.
    cross_attention: int  #: the two of cross-attention.

    @property
    def total(self) -> int:
        """The sum."""
        return sum(self)


def forward_flops(
    config: WanConfig,
    latent_size: tuple[int, int, int],
    text_tokens: int,
    branches: int = 1,
    *,
    batch: int = 1,
    timesteps: int = 1,
    context_tokens: int = 0,
    experts: int | None = None,
    joint: bool = True,
    share_text_kv: bool = False,
    share_condition_embedder: bool = False,
) -> ForwardFlops:
    """Predict the FLOPs of one forward pass of a Wan transformer, or of N that can attend jointly.

    Only matrix products count, as in ``torch.utils.flop_counter``. With N ``branches``, B clips, S tokens per
    branch (those of ``latent_size`` (t, h, w), and ``context_tokens``), T text tokens, width D, feed-forward
    width F, L blocks and M text memories (1 if all branches read the same keys and values, else N):

        linear          = L B (12 N S D^2 + 4 N S D F + 4 M T D^2)
        self-attention  = L B 4 (N S)^2 D        joint
                          L B 4 N S^2 D          not joint
        cross-attention = L B 4 N S T D

    Joint attention grows with N^2, the rest with N: for long videos joint attention is nearly the whole cost.
    A training step takes about three forward passes, four with full checkpointing.

    With G ``timesteps`` (runs of tokens with equal timestep), E condition embedders (1 if shared, else one
    per set of weights, ``experts``: N or 1), P sinusoids, text of width W, C channels in and O out, and c
    latent cells per token (context tokens are not embedded):

        embedding = 2 B N S c D (C + O) + 2 B E (G (P D + 7 D^2) + T (W D + D^2))

    ``config.summed_text`` adds 2 B E D^2. Without text embedding T is the length of every block's context,
    and its own terms are missing here. Without cross-attention 12 becomes 8, and the blocks' terms with T
    vanish.
    """
    experts = branches if experts is None else experts
    depth, dim, inner = config.num_layers, config.dim, config.ffn_dim
    t, h, w = config.grid(latent_size)
    tokens = t * h * w
    p, q, r = config.patch_size
    channels = (config.in_channels + config.out_channels) * p * q * r
    embedders = 1 if share_condition_embedder else experts
    # Branches share keys and values only if they share the text embedding and the projections.
    memories = branches if embedders > 1 or (experts > 1 and not share_text_kv) else 1

    time = timesteps * (config.freq_dim * dim + 7 * dim**2)
    text = 0 if config.text_dim is None else text_tokens * (config.text_dim * dim + dim**2)
    pooled = dim**2 if config.summed_text else 0
    embedding = 2 * branches * tokens * channels * dim + 2 * embedders * (time + text + pooled)
    tokens += context_tokens  # S
    if not config.cross_attention:
        text_tokens = 0
    linear = branches * tokens * ((12 if config.cross_attention else 8) * dim**2 + 4 * dim * inner)
    text_kv = 4 * memories * text_tokens * dim**2
    pairs = (branches * tokens) ** 2 if joint else branches * tokens**2
    return ForwardFlops(
        embedding=batch * embedding,
        linear=depth * batch * (linear + text_kv),
        self_attention=depth * batch * 4 * pairs * dim,
        cross_attention=depth * batch * 4 * branches * tokens * text_tokens * dim,
    )


def counted_flops(function: Callable[[], object]) -> int:
    """FLOPs of the matrix products that ``function`` runs, on any device, even "meta"."""

    # torch has formulas for CUDA's attention kernels, but counts the CPU's as 0.
    def attention(q, k, v, *_args, out_shape=None, **_kwargs) -> int:
        return sdpa_flop_count(q, k, v)

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={kernel: attention}) as counter:
        function()
    return counter.get_total_flops()
