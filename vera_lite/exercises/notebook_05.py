"""Notebook 05: the quiz of InfoNCE, its estimate, and how high it can go."""

import math

from torch.nn import functional as F

from vera_lite.exercises.judge import exercise


def _features(draw):
    """Pairs that are alike, of unequal lengths."""
    for S, D, tau in ((6, 4, 0.5), (5, 3, 0.2)):
        a, noise = draw.normal(S, D), draw.normal(S, D)
        yield (1 + 2 * draw.uniform(S, 1)) * a, a + noise, tau


def _cosines(a, b):
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


@exercise(
    _features,
    {
        "rows are not normalised: a long vector counts as a similar one": lambda a, b, tau: a @ b.T / tau,
        "divide by the temperature: a small one sharpens": lambda a, b, tau: _cosines(a, b) * tau,
        "the temperature is missing": lambda a, b, tau: _cosines(a, b),
        "turned: row i is for position i of `features`": lambda a, b, tau: _cosines(b, a) / tau,
        "normalise each position (dim=1), not each feature": lambda a, b, tau: (
            F.normalize(a, dim=0) @ F.normalize(b, dim=0).T / tau
        ),
        "only one of the two is normalised": lambda a, b, tau: a @ F.normalize(b, dim=1).T / tau,
        "this is the softmax already; asked are the scores before it": lambda a, b, tau: (
            _cosines(a, b) / tau
        ).softmax(1),
    },
)
def scores(features, reference, temperature):
    return _cosines(features, reference) / temperature


def _both(logits):
    return (logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()) / 2


def _rows(a, b, tau, dim=1):
    return scores(a, b, tau).log_softmax(dim).diagonal().mean()


@exercise(
    _features,
    {
        "the sign: the estimate is at most 0, the loss is its negative": lambda a, b, tau: (
            -_both(scores(a, b, tau)).mean()
        ),
        "rows are not normalised: a long vector counts as a similar one": lambda a, b, tau: _both(
            a @ b.T / tau
        ).mean(),
        "divide by the temperature: a small one sharpens": lambda a, b, tau: _both(
            _cosines(a, b) * tau
        ).mean(),
        "only one direction: each A finds its A*; let each A* find its A as well": _rows,
        "only one direction: each A* finds its A; let each A find its A* as well": lambda a, b, tau: _rows(
            a, b, tau, 0
        ),
        "the sum of both directions: the formula has 1 / (2S)": lambda a, b, tau: (
            2 * _both(scores(a, b, tau)).mean()
        ),
        "the sum over positions: the formula has 1 / (2S)": lambda a, b, tau: _both(scores(a, b, tau)).sum(),
        "no negatives: the softmax over the other positions is missing": lambda a, b, tau: (
            scores(a, b, tau).diagonal().mean()
        ),
        "one number for all positions: take the mean": lambda a, b, tau: _both(scores(a, b, tau)),
        "the logarithm is missing": lambda a, b, tau: (
            (scores(a, b, tau).softmax(1).diagonal() + scores(a, b, tau).softmax(0).diagonal()).mean() / 2
        ),
    },
)
def symmetric_info_nce(features, reference, temperature):
    return _both(scores(features, reference, temperature)).mean()


def _labels(draw):
    yield ([2, 0, 2, 1, 0, 2, 5, 2],)
    yield ([7] * 4,)
    yield ([draw.integer(0, 3) for _ in range(9)],)


def _sizes(labels):
    return [labels.count(label) for label in set(labels)]


def _estimate(labels):
    return -sum(k * math.log(k) for k in _sizes(labels)) / len(labels)


@exercise(
    _labels,
    {
        "this is 'all alike', whatever the groups are": lambda labels: -math.log(len(labels)),
        "a mean over groups: take it over positions": lambda labels: (
            -sum(map(math.log, _sizes(labels))) / len(_sizes(labels))
        ),
        "the logarithm of the mean size: take the mean of the logarithms": lambda labels: (
            -math.log(len(labels) / len(_sizes(labels)))
        ),
        "each position of a group loses ln k, not the group once": lambda labels: (
            -sum(map(math.log, _sizes(labels))) / len(labels)
        ),
        "the sign: the estimate is at most 0": lambda labels: -_estimate(labels),
        "the natural logarithm, as in the formula": lambda labels: _estimate(labels) / math.log(2),
        "the sum over positions: take the mean": lambda labels: _estimate(labels) * len(labels),
    },
)
def best_estimate(labels):
    return _estimate(labels)
