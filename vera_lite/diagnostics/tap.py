"""Watch a model's attention, or cut connections in it, from outside and for any model.

A ``TorchFunctionMode`` stands between a model and ``scaled_dot_product_attention`` (SDPA), and forward hooks
name the running module. Attention that does not call this function (eager attention, flash-attention
packages) is out of reach; :attr:`Tap.unseen` lists such modules. ``nn.MultiheadAttention`` is in reach once
its fast path, a kernel of its own, is off: ``torch.backends.mha.set_fastpath_enabled(False)``.

With the knock-out inside, the tap sees the cut in the call's mask::

    with Tap(model, observer), KnockOut(model, keys):
        model(...)
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from vera_lite.diagnostics.call import AttentionCall, CallSite

_SDPA = F.scaled_dot_product_attention
_ATEN = torch.ops.aten.scaled_dot_product_attention
_SDPAS = {_SDPA, _ATEN, _ATEN.default}
_SOFTMAXES = {F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax}


class _AttentionMode(TorchFunctionMode):
    """Passes every SDPA call that is made inside a module of the model through ``attend``."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._hooks = []
        self._running = []  # names of running modules, innermost last; the model's own name is ""

    def __enter__(self):
        kind = type(self).__name__
        if self._hooks:
            raise RuntimeError(f"this {kind} is in use already: leave it first, or make another.")
        # torch.compile wraps a module, Module.compile marks it.
        if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in self.model.modules()):
            raise ValueError(f"{kind} cannot see into a compiled model: give the one before torch.compile.")
        own = [name for name, m in self.model.named_modules() if isinstance(m, nn.MultiheadAttention)]
        if own and torch.backends.mha.get_fastpath_enabled():
            raise ValueError(
                f"{kind} cannot see the fast path of torch's MultiheadAttention, {own[0] or 'the model'}: "
                "call torch.backends.mha.set_fastpath_enabled(False) before all runs that you compare."
            )
        for name, module in self.model.named_modules():
            started, finished = partial(self._started, name), partial(self._finished, name)
            self._hooks.append(module.register_forward_pre_hook(started))
            self._hooks.append(module.register_forward_hook(finished, always_call=True))
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        while self._hooks:
            self._hooks.pop().remove()
        self._running.clear()  # after a keyboard interrupt no hooks run

    def _started(self, name: str, module: nn.Module, inputs: tuple) -> None:
        self._running.append(name)

    def _finished(self, name: str, *_) -> None:
        if self._running[-1:] == [name]:  # unless an error in another hook kept the module from starting
            self._running.pop()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if self._running and func in _SDPAS:
            func = self.attend
        elif self._running and func is F.multi_head_attention_forward:
            func = self._multi_head
        return func(*args, **(kwargs or {}))

    def _multi_head(self, *args, **options):
        """torch's own attention, which calls SDPA unless it has to return weights."""
        with self._inside():
            return F.multi_head_attention_forward(*args, **options)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """See SDPA calls of a torch function; torch disables a mode in functions that the mode handles."""
        before = F.scaled_dot_product_attention  # of a mode around this one

        def seen(*args, **options):
            F.scaled_dot_product_attention = _SDPA
            TorchFunctionMode.__enter__(self)
            try:
                return before(*args, **options)
            finally:
                TorchFunctionMode.__exit__(self, None, None, None)
                F.scaled_dot_product_attention = seen

        F.scaled_dot_product_attention = seen
        try:
            yield
        finally:
            F.scaled_dot_product_attention = before


class Tap(_AttentionMode):
    """See every attention call of a model, named by module, call and step; no output changes by a bit.

    A step is one call of the model's forward, together with calls of its parts before that: one denoising
    step; in ``generate()`` vision tower and prefill, then one step per token. The second run of a
    checkpointed block is not recorded (torch disables function modes in backward passes). A module with two
    names is recorded under the first. Entering again starts anew. Do not nest taps of one model: the outer
    tap would see the measurements of the inner one.

    When it decodes with grouped keys and a padding mask, transformers puts the heads that share a key on the
    query axis. ``nn.MultiheadAttention`` that returns weights runs twice: its own products cannot be seen, so
    the tap measures the same call of SDPA, whose result is dropped.

    Args:
        model: any module that calls SDPA, not compiled.
        observer: called after every attention call, without gradients and with the tap off. It must not
            change the tensors, which are the model's own: clone what must outlive the call. If it has a list
            ``unmatched``, like a :class:`.CapturePlan`, the tap warns of its items at the end.

    Attributes:
        sites: where attention was seen, in order.

    Raises:
        RuntimeError: on entering, if entered already.
        ValueError: on entering, if the model is compiled or holds an ``nn.MultiheadAttention`` whose fast
            path is on; during the model's run, if attention drops out.

    Warns:
        On leaving, unless by an exception: if modules with attention or with a softmax went unseen, if the
        model ran without any visible attention, or if an entry of the plan matched nothing.
    """

    def __init__(self, model: nn.Module, observer: Callable[[AttentionCall], None] | None = None):
        super().__init__(model)
        self.observer = observer
        self._reset()

    def _reset(self) -> None:
        self.sites: list[CallSite] = []
        self._step = 0
        self._calls = Counter()  # of this step, by module
        self._attention = {}  # names of modules that ran and seem to hold attention, as an ordered set
        self._seen = set()

    @property
    def unseen(self) -> list[str]:
        """Attention modules that ran without a visible call of their own or of a module inside them.

        A module counts as attention if the name of its class contains "attention" or "attn", of nested
        modules only the innermost; or if it takes a softmax over the last of three or more axes.
        """
        return [name for name in self._attention if name not in self._seen]

    def __enter__(self):
        super().__enter__()
        self._reset()
        return self

    def __exit__(self, exception_type, *exception):
        super().__exit__(exception_type, *exception)
        if exception_type is not None:
            return
        if self.unseen or (self._step and not self.sites):
            names = ", ".join(name or "the model itself" for name in self.unseen) or "the model"
            warnings.warn(
                f'no attention was seen in {names}, which seems to have some: set the "sdpa" attention '
                'implementation ("native" in diffusers); flash-attention packages, compiled graphs and '
                "attention written out with a softmax cannot be seen.",
                stacklevel=2,
            )
        elif unmatched := getattr(self.observer, "unmatched", None):
            seen = list(dict.fromkeys(site.module for site in self.sites))
            warnings.warn(
                f"nothing was captured for {', '.join(map(repr, unmatched))}; attention was seen in "
                f"{', '.join(seen[:4])}{', ...' * (len(seen) > 4)}.",
                stacklevel=2,
            )

    def _started(self, name: str, module: nn.Module, inputs: tuple) -> None:
        super()._started(name, module, inputs)
        if re.search("attention|attn", type(module).__name__, re.IGNORECASE):
            self._seen.update(self._running[:-1])  # of nested attention modules only the innermost counts
            self._attention[name] = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs)
        if self._running and func in _SOFTMAXES and result.ndim > 2:
            self._attention.setdefault(self._running[-1])
        return result

    def _multi_head(self, *args, need_weights: bool = True, **options):
        result = F.multi_head_attention_forward(*args, need_weights=True, **options) if need_weights else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not need_weights):
            seen = super()._multi_head(*args, need_weights=False, **options)
        return result if need_weights else seen

    def _finished(self, name: str, *_) -> None:
        super()._finished(name)
        if name == "":
            self._step += 1
            self._calls.clear()

    def attend(
        self,
        query,
        key,
        value,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        *,
        scale=None,
        enable_gqa=False,
    ) -> Tensor:
        if dropout_p > 0:
            raise ValueError("attention with dropout has no weights of its own: call model.eval() first.")
        output = _SDPA(query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
        self._seen.update(self._running)
        module = self._running[-1]
        site = CallSite(module, self._calls[module], self._step)
        self._calls[module] += 1
        self.sites.append(site)
        if self.observer is not None:
            # Autocast casts below this function: the kernel's inputs had the dtype of its output.
            query, key, value = (x.detach().to(output.dtype) for x in (query, key, value))
            if attn_mask is not None:
                attn_mask = attn_mask.detach()
                attn_mask = attn_mask if attn_mask.dtype == torch.bool else attn_mask.to(output.dtype)
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            query, key, value, shown, attn_mask = _four_axes(query, key, value, output.detach(), attn_mask)
            call = AttentionCall(site, query, key, value, attn_mask, is_causal, scale, shown)
            # Selective checkpointing counts calls with a dispatch mode, which must not count a measurement.
            with torch.no_grad(), _disable_current_modes():
                self.observer(call)
        return output


class KnockOut(_AttentionMode):
    """Hide some keys from queries, or silence whole heads: what does the model lose without them?

    The cut is merged into the mask of every call of a matching module with the right number of keys (and
    queries and heads); other calls stay as they are. Gradients of checkpointed blocks are refused, because a
    backward pass would compute the block again without the cut.

    Args:
        model: any module that calls SDPA, not compiled.
        keys: bool (K,), True = knocked out, for calls with K keys; or indices, for calls that have all of
            them. None: all keys of the given ``heads``, whose output becomes zero.
        where: regular expression, searched for in the module's qualified name.
        queries: the queries that lose the keys, bool (Q,) or indices like ``keys``; None means all.
        heads: the heads that lose the keys, bool (H,) or indices like ``keys``; None means all.

    Raises:
        ValueError: keys, queries or heads are neither bool nor indices, or there are neither keys nor heads;
            during the model's run, if a query would have no key left.
        RuntimeError: in a backward pass through a checkpointed block; on entering, as :class:`Tap`.

    Warns:
        On leaving, unless by an exception: if no call was changed.
    """

    def __init__(
        self,
        model: nn.Module,
        keys: Tensor | None,
        where: str = ".*",
        queries: Tensor | None = None,
        heads: Tensor | None = None,
    ):
        super().__init__(model)
        if keys is None and heads is None:
            raise ValueError("a knock-out needs keys, heads or both.")
        for name, chosen in (("keys", keys), ("queries", queries), ("heads", heads)):
            if chosen is None:
                continue
            is_index = not chosen.is_floating_point() and not chosen.is_complex()
            # Negative indices would mean another token in calls of another length.
            if chosen.ndim != 1 or not is_index or (chosen.dtype != torch.bool and (chosen < 0).any()):
                raise ValueError(f"{name} must have one axis of bools, or of indices from 0 up.")
        self._where = re.compile(where)
        self.keys, self.queries, self.heads = keys, queries, heads

    def __enter__(self):
        self._sizes = set()  # (Q, K) of the calls that matched
        self._changed = False
        return super().__enter__()

    def __exit__(self, exception_type, *exception):
        super().__exit__(exception_type, *exception)
        if exception_type is None and not self._changed:
            warnings.warn(
                f"the knock-out where {self._where.pattern!r} changed no call; (queries, keys) of the calls "
                f"that matched: {sorted(self._sizes) or 'none'}.",
                stacklevel=2,
            )

    def attend(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **options) -> Tensor:
        cut = None
        if self._where.search(self._running[-1]):
            heads, queries, keys = *(query[None] if query.ndim < 3 else query).shape[-3:-1], key.shape[-2]
            self._sizes.add((queries, keys))
            cut = self._cut(heads, queries, keys, query.device)
            self._changed |= cut is not None
        if cut is not None and self.keys is not None:
            if attn_mask is None:
                attn_mask = torch.ones_like(cut)
                if is_causal:  # the kernel's triangle starts at the top left, also if K != Q
                    attn_mask, is_causal = attn_mask.tril(), False
            attn_mask = self._merge(attn_mask, cut)
        output = _SDPA(query, key, value, attn_mask, dropout_p, is_causal, **options)
        return output.masked_fill(cut[..., :1], 0) if cut is not None and self.keys is None else output

    def _multi_head(self, *args, need_weights: bool = True, **options):
        if need_weights:
            raise ValueError(f"to cut {self._running[-1]!r}, call it with need_weights=False.")
        return super()._multi_head(*args, need_weights=False, **options)

    def _started(self, name: str, module: nn.Module, inputs: tuple) -> None:
        if torch._C._current_graph_task_id() != -1:  # inside a backward pass
            raise RuntimeError(
                "a knock-out does not reach checkpointed blocks in a backward pass: switch checkpointing off."
            )
        super()._started(name, module, inputs)

    def _cut(self, heads: int, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """Which query loses which key, bool (Q, K) or (H, Q, K); None if this call's sizes do not fit."""
        cut = torch.ones((), dtype=torch.bool, device=device)
        for chosen, count in ((self.heads, heads), (self.queries, queries), (self.keys, keys)):
            flags = _flags(chosen, count, device)
            if flags is None:
                return None
            cut = cut[..., None] & flags
        return cut[0] if self.heads is None else cut

    def _merge(self, mask: Tensor, cut: Tensor) -> Tensor:
        """The mask with the cut in it; bool stays bool, additive stays additive."""
        merged = mask & ~cut if mask.dtype == torch.bool else torch.where(cut, -torch.inf, mask)
        if (_open(mask).any(-1) & ~_open(merged).any(-1)).any():
            raise ValueError(
                f"the knock-out leaves a query of {self._running[-1]!r} no key to look at: "
                "knock out fewer keys, or choose with queries= who loses them."
            )
        return merged


def _flags(chosen: Tensor | None, length: int, device: torch.device) -> Tensor | None:
    """Bool (length,), all of them if None was chosen; None if ``chosen`` does not fit this length."""
    chosen = torch.ones(length, dtype=torch.bool) if chosen is None else chosen
    chosen = chosen.to(device)
    if chosen.dtype == torch.bool:
        return chosen if len(chosen) == length else None
    if (chosen >= length).any():
        return None
    return torch.zeros(length, dtype=torch.bool, device=device).index_fill(0, chosen.long(), True)


def _open(mask: Tensor) -> Tensor:
    """Where a mask allows attention; additive masks forbid with -inf or the lowest number of their dtype."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min


def _four_axes(query, key, value, output, mask):
    """A call with any number of axes as (B, H, tokens, d): missing axes get size 1, all before H become B.

    The kernel broadcasts all axes before the last two. Here keys keep their heads, which may be fewer
    (grouped queries).
    """
    if query.ndim == key.ndim == value.ndim == 4 and len(query) == len(key) == len(value):
        return query, key, value, output, mask
    query, key, value, output = (x[(None,) * (4 - x.ndim)] for x in (query, key, value, output))
    batch = output.shape[:-3]
    tensors = (x.expand(*batch, *x.shape[-3:]).flatten(0, -4) for x in (query, key, value, output))
    if mask is not None and mask.ndim > 3:
        mask = mask.expand(*batch, *mask.shape[-3:]).flatten(0, -4)
    return *tensors, mask
