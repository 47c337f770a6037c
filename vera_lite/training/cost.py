"""What one pass over a rank's clips costs in FLOPs and bytes.

The real system runs on the meta device, which has shapes and no numbers. Every floating-point operation is
counted with torch's own formulas, and every tensor that is alive is added up. So the costs hold for whatever
the system does: masks, a reference pass, a contrastive loss. Blocks are alike, so two shallow systems tell
what each further block costs.
"""

import functools
import math
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from vera_lite.conditioning.editing_tokens import Context
from vera_lite.conditioning.vision_language import TOY_VLM
from vera_lite.diffusion.draws import StepRandom
from vera_lite.errors import UserError
from vera_lite.systems import RVEDiT
from vera_lite.systems.rvedit import AdaptedVLM, VisionLanguageModel
from vera_lite.training.encoded import Clip, random_clips
from vera_lite.training.parallel import Parallel, set_checkpointing, shallow_config

_QWEN2_5_VL_3B = {
    "text_config": {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "vision_config": {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
    },
    "tie_word_embeddings": True,
}  # fmt: skip
_QWEN3_VL_8B = {
    "text_config": {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    },
    "vision_config": {
        "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096,
    },
    "tie_word_embeddings": False,
}  # fmt: skip
#: transformers' model type and published sizes of the papers' vision-language models. With these a plan needs
#: no download.
VLMS = {
    "Qwen/Qwen2.5-VL-3B-Instruct": ("qwen2_5_vl", _QWEN2_5_VL_3B),
    "Qwen/Qwen3-VL-8B-Instruct": ("qwen3_vl", _QWEN3_VL_8B),
}


class Cost(NamedTuple):
    """What one pass over one rank's clips costs."""

    flops: float  #: that are computed.
    repeated: float = 0  #: of these, what attention's fused backward kernels compute a second time.
    kept: float = 0  #: bytes alive between forward and backward pass, beside weights.
    peak: float = 0  #: most bytes alive at once, beside weights and their gradients.


class Counting(TorchDispatchMode):
    """Adds up the FLOPs of all operations, and the bytes of all tensors that are made meanwhile and are still
    alive.

    Args:
        before: tensors that were there before; views of them count as nothing.
    """

    def __init__(self, before: Iterable[Tensor] = ()):
        super().__init__()
        storages = [tensor.untyped_storage() for tensor in before]
        self.known = {s._cdata: (StorageWeakRef(s), 0) for s in storages}
        self._now = self.peak = 0
        self.flops = self.repeated = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            flops = formula(*args, **(kwargs or {}), out_val=out)
            self.flops += flops
            if "attention" in str(func) and "backward" in str(func):
                self.repeated += flops / 5  # 5 matrix products backward, of which 1 is Q K^T once more
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:  # while referred to, no address is used again
                    self.known[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                    self._now += storage.nbytes()
                    if self._now > self.peak:
                        self.peak = max(self.peak, self.now)
        return out

    @property
    def now(self) -> int:
        """Bytes that are alive at present."""
        for key in [key for key, (reference, _) in self.known.items() if reference.expired()]:
            self._now -= self.known.pop(key)[1]
        return self._now


@contextmanager
def fused_attention():
    """On the meta device attention runs as plain matrix products, with its whole matrix: give it the shapes
    of CUDA's fused kernels."""
    plain = F.scaled_dot_product_attention

    def fused(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **kwargs) -> Tensor:
        if not q.is_meta:
            return plain(q, k, v, attn_mask, **kwargs)
        if attn_mask is None:
            return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
        bias = q.new_empty(1).expand(*q.shape[:-1], k.shape[-2])
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True)[0]

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def run_cost(forward: Callable[[], Tensor], model: nn.Module) -> Cost:
    """The cost of ``forward()``, whose parameters are ``model``'s, and of its backward pass if it has one."""
    for parameter in model.parameters():  # FSDP2 hands gradients on as soon as they are there
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with fused_attention(), Counting([*model.parameters(), *model.buffers()]) as counted:
        loss = forward()
        kept = counted.now
        if loss.requires_grad:
            loss.backward()
    return Cost(counted.flops, counted.repeated, kept, counted.peak)


# --- the system ----------------------------------------------------------------------------------


def on_meta(kind: type[nn.Module], config: Any, dtype: str) -> Any:
    """A system without memory, in the precision in which it computes; with its adapters, if it has any."""
    rank = getattr(config, "lora_rank", 0)
    with torch.device("meta"):
        system: Any = kind(replace(config, lora_rank=0) if rank else config)
        if rank:
            system.adapt(AdaptedVLM.new(vlm_skeleton(config.vlm), rank))
    return system.to(getattr(torch, dtype))


def step_cost(
    kind: type[nn.Module], config: Any, clip: Clip, clips: int, parallel: Parallel, training: bool = True
) -> Cost:
    """The cost of a training step of a system of this config, without that of its vision-language model.

    Args:
        kind: class of the system.
        config: its config.
        clip: size of a clip.
        clips: per rank.
        parallel: its checkpointing and dtype count.
        training: else a forward pass without gradients.
    """
    if hasattr(config, "lora_rank"):
        config = replace(config, lora_rank=0)
    system = on_meta(kind, config, parallel.dtype)
    set_checkpointing(system, parallel.checkpointing)
    with torch.device("meta"):
        batch = random_clips(system, clip, clips)
    if isinstance(system, RVEDiT):
        hidden = [
            torch.empty(clips, n, config.vlm_dim, device="meta").type_as(system.tokens.queries)
            for n in (config.editing_tokens, clip.vlm_tokens - config.text_tokens, config.text_tokens)
        ]

        def context(*_) -> Context:
            edit, *native = hidden
            connector = system.tokens.native_connector
            return Context(system.tokens.connector(edit + system.tokens.queries), *map(connector, native))

        system.context = context
    sigma = config.objective.sample_sigma(StepRandom(0, 0, clips)).to("meta")

    def forward() -> Tensor:
        losses = system.training_losses(batch, sigma, StepRandom(0, 0, clips))
        skipped = getattr(system, "logged_only", ())
        return torch.stack([v for n, v in losses.items() if n not in skipped]).sum(0).mean()

    with torch.set_grad_enabled(training):
        return run_cost(forward, system)


def full_depth(cost: Callable[[Any], Cost], config: Any) -> Cost:
    """``cost(config)`` at the config's depth, from those of two shallow ones: blocks are alike."""
    depth = config.backbone.num_layers
    step = depth // math.gcd(depth, getattr(config, "routed_layers", depth))  # keeps the routed share exact
    step = max(step, getattr(config, "branch_layers", 0))
    if depth <= 2 * step:
        return cost(config)
    one, two = (cost(shallow_config(config, layers)) for layers in (step, 2 * step))
    return _extrapolated(one, two, depth / step)


def _extrapolated(one: Cost, two: Cost, times: float) -> Cost:
    return Cost(*(a + (b - a) * (times - 1) for a, b in zip(one, two, strict=True)))


@functools.lru_cache(maxsize=256)
def reckon(kind: type[nn.Module], config: Any, clip: Clip, clips: int, parallel: Parallel) -> Cost:
    """:func:`step_cost` at full depth; each question is answered once per process."""
    return full_depth(lambda shallow: step_cost(kind, shallow, clip, clips, parallel), config)


# --- its vision-language model -------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def vlm_skeleton(name: str | None, layers: int | None = None) -> VisionLanguageModel:
    """A vision-language model without memory and without processor, frozen.

    Args:
        name: see :class:`vera_lite.systems.RVEDiTConfig`; also one of :data:`VLMS`, which need not be on this
            machine.
        layers: of its language tower; None: all.

    Raises:
        UserError: it is neither on this machine nor one of these.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    if name in VLMS:
        kind, sizes = VLMS[name]
        config = AutoConfig.for_model(kind, **sizes)
    else:
        try:
            config = AutoConfig.from_pretrained(name or TOY_VLM, local_files_only=True)
        except OSError as error:
            raise UserError(f"the vision-language model {name!r} is not on this machine.") from error
    if layers is not None:
        tower = config.text_config
        tower.num_hidden_layers = layers
        if hasattr(tower, "layer_types"):  # Qwen2.5-VL has a list of them
            tower.layer_types = tower.layer_types[:layers]
    dtype = torch.float32 if name is None else torch.bfloat16
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return VisionLanguageModel(model.requires_grad_(False), processor=None)


@functools.lru_cache(maxsize=64)
def vlm_cost(config: Any, clip: Clip, clips: int) -> Cost:
    """What RVEDiT's vision-language model costs in a training step: its language tower reads the prompt, then
    the editing tokens, and once more for the reference, without gradients. (The vision tower is frozen and
    costs a few per cent of that; it is not counted.)"""
    depth = vlm_skeleton(config.vlm).model.config.text_config.num_hidden_layers

    def cost(layers: int) -> Cost:
        vlm = vlm_skeleton(config.vlm, layers)
        if config.lora_rank:
            with torch.device("meta"):
                vlm = AdaptedVLM.new(vlm, config.lora_rank)
                for adapter in vlm.adapters().values():
                    adapter.float()
        tower = vlm.model.model.language_model
        prompt, queries = (
            torch.empty(clips, n, config.vlm_dim, device="meta", dtype=vlm.model.dtype)
            for n in (clip.vlm_tokens, config.editing_tokens)
        )
        queries.requires_grad_()

        def read() -> Tensor:
            with torch.set_grad_enabled(torch.is_grad_enabled() and bool(config.lora_rank)):
                before = tower(inputs_embeds=prompt, use_cache=True)
            after = tower(inputs_embeds=queries, past_key_values=before.past_key_values)
            return before.last_hidden_state.float().sum() + after.last_hidden_state.float().sum()

        def forward() -> Tensor:
            loss = read()
            if config.alignment_weight:
                with torch.no_grad():
                    read()
            return loss

        return run_cost(forward, vlm.model)

    if depth <= 2:
        return cost(depth)
    return _extrapolated(cost(1), cost(2), depth)
