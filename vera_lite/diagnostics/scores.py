"""Scores of where attention goes: pure functions of tensors.

N video tokens, K keys; any axes may lead (layers, heads, steps). A map is one row of weights. Its scale does
not matter; if its total is zero, its shares are nan. All results are float64.

The mask ratio is the diagnostic of MiVE (arXiv 2605.14664, Eq. 1-2). There are two readings:

- softmax: the attention weights, ``mask_ratio(weights.mean(-2), coverage)`` for weights (..., text tokens,
  N). The mean over text tokens comes first, as in MiVE's heat map: a text token that looks more at the video
  counts more. Average over heads as well for one number per layer.
- similarity: products of hidden states, :func:`similarity_map`.

RVEDiT (arXiv 2605.24674) compares branches by entropy, cosine and Jensen-Shannon divergence.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sinks:
    """The s sink tokens of a set of maps (..., K), strongest first."""

    indices: Tensor  #: (s,), among the K tokens.
    share: Tensor  #: (s,), share of the mass of all maps together, in [0, 1].
    is_sink: Tensor  #: (..., s), whether the token is a sink in each map.


def _shares(weights: Tensor) -> Tensor:
    """Maps (..., K) divided by their totals, in float64."""
    if weights.ndim == 0 or weights.shape[-1] == 0:
        raise ValueError(f"weights need a last axis of tokens, got shape {tuple(weights.shape)}.")
    if not (weights.isfinite() & (weights >= 0)).all():
        raise ValueError("weights must be finite and not negative; similarity_map makes a map of products.")
    weights = weights.double()
    return weights / weights.sum(-1, keepdim=True)


def mask_ratio(weights: Tensor, coverage: Tensor, exclude: Tensor | None = None) -> Tensor:
    """The share of the attention on the video that falls on the mask, sum_j a_j m_j / sum_j a_j.

    Args:
        weights: (..., N), not negative.
        coverage: (N,), how much of each token the mask covers, in [0, 1].
        exclude: indices of tokens to leave out of both sums, e.g. ``sinks(weights).indices``.

    Returns:
        (...) in [0, 1].

    Raises:
        ValueError: negative weights, or a coverage of another shape or range.
    """
    tokens = weights.shape[-1] if weights.ndim else 0
    if coverage.shape != (tokens,) or not ((coverage >= 0) & (coverage <= 1)).all():
        raise ValueError(f"coverage must have shape ({tokens},) and lie in [0, 1].")
    if exclude is not None:
        weights = weights.index_fill(-1, exclude.to(weights.device), 0)
    shares = _shares(weights)
    return shares @ coverage.to(shares)


def lift(weights: Tensor, coverage: Tensor, exclude: Tensor | None = None) -> Tensor:
    """The mask ratio divided by that of uniform attention, which is the mask's share of the tokens.

    Arguments and errors are those of :func:`mask_ratio`. 1 is no preference; nan for an empty mask.
    """
    uniform = torch.ones_like(coverage, dtype=torch.float64)
    area = mask_ratio(uniform, coverage, exclude)
    return mask_ratio(weights, coverage, exclude) / area.to(weights.device)


def similarity_map(
    text_hidden: Tensor, video_hidden: Tensor, reading: Literal["softmax", "shifted"] = "softmax"
) -> Tensor:
    """Where the text's hidden states are similar to the video's: E V^T made into a map, averaged over text.

    The product has negative entries, so shares of its sum mean nothing. There are two solutions:

    - "softmax": for each text token, over video tokens, of the product / sqrt(D). It gets sharper as hidden
      states grow with depth, so compare layers with care.
    - "shifted": the mean product minus its smallest entry. A heat map scaled to [0, 1] has the same shares.
      One very low outlier flattens it.

    Args:
        text_hidden: E (..., text tokens, D).
        video_hidden: V (..., N, D).
        reading: "softmax" or "shifted".

    Returns:
        (..., N), not negative: weights for :func:`mask_ratio`.
    """
    product = text_hidden.double() @ video_hidden.double().mT
    if reading == "softmax":
        return (product / math.sqrt(text_hidden.shape[-1])).softmax(-1).mean(-2)
    if reading == "shifted":
        product = product.mean(-2)
        return product - product.amin(-1, keepdim=True)
    raise ValueError(f"reading is softmax or shifted, not {reading!r}.")


def sinks(received: Tensor, factor: float = 20.0) -> Sinks:
    """Tokens that receive more than ``factor`` times the uniform share 1 / K in at least one map.

    Gu et al. (arXiv 2410.10781) call a token a sink if its mean over queries exceeds 0.3, for any K. With
    thousands of video tokens few could, so here the limit is a multiple of 1 / K; 20 is our choice. High mass
    does not prove a sink: a small object that all queries look at passes too. A mean over queries hides
    whether many or few of them look; take rows (..., queries, K) as maps, and the mean of ``is_sink`` over
    queries shows it.

    Args:
        received: (..., K), mass that each token receives, e.g. the mean over queries of each head.
        factor: in (1, K).

    Raises:
        ValueError: negative mass, or a factor that no token or every token could pass.
    """
    shares = _shares(received)
    tokens = shares.shape[-1]
    if not 1 < factor < tokens:
        raise ValueError(f"factor must lie between 1 and the number of tokens {tokens}, got {factor}.")
    passed = shares > factor / tokens
    total = _shares(received.double().reshape(-1, tokens).sum(0))
    indices = passed.reshape(-1, tokens).any(0).nonzero()[:, 0]
    indices = indices[total[indices].argsort(descending=True, stable=True)]
    return Sinks(indices, total[indices], passed[..., indices])


def entropy(weights: Tensor, normalised: bool = True) -> Tensor:
    """Shannon entropy of each map; over the tokens of a video, the spatial entropy of attention.

    Args:
        weights: (..., K), not negative.
        normalised: divide by log K: 1 is uniform, 0 a single token (K = 1 gives nan). Otherwise in nats.

    Returns:
        (...).
    """
    nats = torch.special.entr(_shares(weights)).sum(-1)
    return nats / math.log(weights.shape[-1]) if normalised else nats


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of maps, (..., K) twice -> (...) in [0, log 2] nats.

    H((p + q) / 2) - (H(p) + H(q)) / 2 of the normalised maps (Lin 1991); the divergence, not its root.
    scipy's root is nan for nearly equal maps, where rounding makes the divergence negative.
    """
    if p.shape != q.shape:
        raise ValueError(f"two maps must have one shape, got {tuple(p.shape)} and {tuple(q.shape)}.")
    p, q = _shares(p), _shares(q)
    of_p, of_q, of_both = (torch.special.entr(x).sum(-1) for x in (p, q, (p + q) / 2))
    return (of_both - (of_p + of_q) / 2).clamp(0, math.log(2))
