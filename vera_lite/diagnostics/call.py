"""One attention call, and what a measurement of it costs and returns."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class CallSite:
    """Where an attention call happened."""

    module: str  #: qualified name of the innermost module that made the call, e.g. ``blocks.3.attn1``.
    #: which call of this module in one step. Wan's image-to-video block makes two calls in one
    #: cross-attention, Qwen's vision tower one per slot.
    call: int = 0
    step: int = 0  #: which call of the tapped model: the denoising step, or the decoding step.


@dataclass(frozen=True)
class AttentionCall:
    """Arguments and result of one ``scaled_dot_product_attention`` call."""

    site: CallSite
    query: Tensor  #: (B, H, Q, d), after positions were applied.
    key: Tensor  #: (B, Hk, K, d); Hk divides H (grouped queries).
    value: Tensor  #: (B, Hk, K, dv).
    mask: Tensor | None  #: None, bool (True = visible) or additive, broadcastable to (B, H, Q, K).
    is_causal: bool  #: query i sees keys 0..i, as the kernel defines it.
    scale: float  #: factor of the logits.
    output: Tensor  #: (B, H, Q, dv), the kernel's own.


def without_repeats(mask: Tensor) -> Tensor:
    """The mask without expanded axes: those of stride 0 get size 1."""
    return mask[tuple(slice(1) if stride == 0 else slice(None) for stride in mask.stride())]


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of an attention call, which decide its cost. Module and step as in :class:`CallSite`."""

    module: str
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int
    itemsize: int = 4  #: bytes of a number in Q, K and V.
    mask_bytes: int = 0  #: of the mask before it is broadcast; 0 without one.
    is_causal: bool = False  #: see :class:`AttentionCall`.
    step: int = 0

    @classmethod
    def of(cls, call: AttentionCall) -> "AttentionShape":
        batch, heads, queries, head_dim = call.query.shape
        return cls(
            module=call.site.module,
            batch=batch,
            heads=heads,
            kv_heads=call.key.shape[1],
            queries=queries,
            keys=call.key.shape[2],
            head_dim=head_dim,
            value_dim=call.value.shape[-1],
            itemsize=call.query.itemsize,
            mask_bytes=0 if call.mask is None else without_repeats(call.mask).nbytes,
            is_causal=call.is_causal,
            step=call.site.step,
        )

    @property
    def flops(self) -> int:
        """FLOPs of the call itself; causal calls count in full, as torch counts them."""
        pairs = self.batch * self.heads * self.queries * self.keys
        return 2 * pairs * (self.head_dim + self.value_dim)


@dataclass(frozen=True)
class Cost:
    """The cost of a measurement on one call."""

    result_bytes: int  #: exact size of the result.
    transient_bytes: int  #: further memory while it runs.
    flops: int  #: of its matrix products.


@dataclass(frozen=True, eq=False)
class Capture:
    """The result of a measurement."""

    site: CallSite
    heads: tuple[int, ...]  #: which heads, in the order of ``values``.
    values: Tensor  #: float32 on the CPU; the shape depends on the measurement.
    #: largest absolute difference between A V, recomputed from the measured weights, and the kernel's own
    #: output. About 1e-6 for a model in float32. In bfloat16 it is the rounding of the kernel's output, about
    #: 1e-2 of the largest value.
    residual: float
    names: tuple[str, ...] = ()  #: of the groups.
    #: of each row the tokens that look, whose mean it is; () where the values are no rows of queries.
    queries: tuple[tuple[int, ...], ...] = ()
