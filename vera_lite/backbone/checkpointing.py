"""Blocks one by one: which they are, and what each keeps for its backward pass (checkpointing)."""

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_ATTENTION_OPS = {
    op.default
    for name in (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
    if (op := getattr(torch.ops.aten, name, None)) is not None
}


def blocks_of(system: nn.Module) -> list[nn.Module]:
    """The blocks of all towers: what is checkpointed, compiled, sharded and offloaded one by one."""
    lists = (m for n, m in system.named_modules() if n.endswith("blocks") and isinstance(m, nn.ModuleList))
    return [block for blocks in lists for block in blocks]


def run_block(checkpointing: str, block: nn.Module, *inputs):
    """``block(*inputs)``, keeping for the backward pass what ``checkpointing`` says.

    Args:
        checkpointing: "none" keeps everything; "full" keeps only the inputs; "attention" keeps also the
            outputs of attention, which cost most to compute again.
        block: any block.
        inputs: its arguments.
    """
    if checkpointing not in ("none", "full", "attention"):
        raise ValueError(f"checkpointing is none, full or attention, not {checkpointing!r}.")
    if checkpointing == "none" or not torch.is_grad_enabled():
        return block(*inputs)
    contexts = {}
    if checkpointing == "attention":
        contexts = {"context_fn": partial(create_selective_checkpoint_contexts, _keep_attention)}
    return checkpoint(block, *inputs, use_reentrant=False, **contexts)  # pyright: ignore[reportCallIssue]


def _keep_attention(_context, op, *_args, **_kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _ATTENTION_OPS else CheckpointPolicy.PREFER_RECOMPUTE
