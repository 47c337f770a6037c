"""Notebook 06: the status of each input, a ledger, and the object's own colours."""

import torch

from vera_lite.exercises.judge import exercise

_STATUSES = ("kept", "rejected", "quarantined")


def _journals(draw):
    """Inputs, some given twice; rows, some written twice, some of keys that are no inputs any more."""
    plain = [("a", "kept"), ("b", "rejected"), ("c", "quarantined")]
    yield list("abc"), plain
    yield list("abcd"), plain
    yield list("abcd"), [*plain, ("a", "kept")]
    yield list("aabe"), [*plain, ("z", "kept")]
    keys = [f"k{draw.integer(0, 9)}" for _ in range(12)]
    rows = [(key, _STATUSES[int(key[1]) % 3]) for key in keys[:8]]
    yield [*keys, "new"], [*rows, ("old", "kept")]


@exercise(
    _journals,
    {
        "leave rows of other keys out: they are no inputs any more": lambda inputs, rows: dict(rows),
        "an input without a row has no status yet: leave it out": lambda inputs, rows: {
            key: dict(rows).get(key, "pending") for key in inputs
        },
        "key -> status, not status -> key": lambda inputs, rows: {
            status: key for key, status in rows if key in inputs
        },
        "a dict, one entry for each key: a row that stands twice counts once": lambda inputs, rows: [
            row for row in rows if row[0] in inputs
        ],
    },
)
def status_of_inputs(inputs, rows):
    return {key: status for key, status in rows if key in set(inputs)}


def _ledger(statuses, pending):
    counts = dict.fromkeys(_STATUSES, 0) | {"pending": pending}
    for status in statuses:
        counts[status] += 1
    return counts


def _of(inputs, rows):
    return list(status_of_inputs(inputs, rows).values())


@exercise(
    _journals,
    {
        "count keys, not rows: one row may stand twice": lambda inputs, rows: _ledger(
            [status for key, status in rows if key in inputs], len(set(inputs) - dict(rows).keys())
        ),
        "leave rows of other keys out: they are no inputs any more": lambda inputs, rows: _ledger(
            dict(rows).values(), len(set(inputs) - dict(rows).keys())
        ),
        "an input without a row is pending": lambda inputs, rows: _ledger(_of(inputs, rows), 0),
        "a row that stands twice must not hide an input that is pending": lambda inputs, rows: _ledger(
            _of(inputs, rows), max(0, len(set(inputs)) - len(rows))
        ),
        "an input that was given twice is one input": lambda inputs, rows: _ledger(
            [dict(rows)[key] for key in inputs if key in dict(rows)],
            len([key for key in inputs if key not in dict(rows)]),
        ),
    },
)
def count_statuses(inputs, rows):
    return _ledger(_of(inputs, rows), len(set(inputs) - dict(rows).keys()))


def _frames(draw):
    """A frame over a plate by an alpha from 0 to 1; in the second case the frame is noisy."""
    for noise in (0.0, 0.3):
        colour, plate = draw.uniform(3, 6, 8), draw.uniform(3, 6, 8)
        alpha = torch.linspace(0, 1, 48).view(1, 6, 8)
        yield alpha * colour + (1 - alpha) * plate + noise, plate, alpha


def _solved(frame, plate, alpha):
    return (frame - (1 - alpha) * plate) / alpha.clamp_min(0.02)


def _with_plate(colours):
    return lambda frame, plate, alpha: torch.where(alpha < 0.02, plate, colours(frame, plate, alpha))


@exercise(
    _frames,
    {
        "not finite where alpha is 0: there is nothing to divide by": lambda frame, plate, alpha: (
            (frame - (1 - alpha) * plate) / alpha
        ).clamp(0, 1),
        "this is the clip's own colour, with the background in it": lambda frame, plate, alpha: frame,
        "this is alpha times the colour (premultiplied): divide by alpha, too": _with_plate(
            lambda frame, plate, alpha: (frame - (1 - alpha) * plate).clamp(0, 1)
        ),
        "the plate counts as far as the object lets it through: 1 - alpha": _with_plate(
            lambda frame, plate, alpha: ((frame - plate) / alpha.clamp_min(0.02)).clamp(0, 1)
        ),
        "where alpha is below 0.02 the result is the plate": lambda frame, plate, alpha: _solved(
            frame, plate, alpha
        ).clamp(0, 1),
        "noise brings the result out of [0, 1]: clamp it": _with_plate(_solved),
    },
)
def own_colours(frame, plate, alpha):
    return _with_plate(_solved)(frame, plate, alpha).clamp(0, 1)
