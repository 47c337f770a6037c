"""Wrong answers to the notebooks' exercises, each with a part of the message that must name the mistake."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from vera_lite.media.clip import composite


def to_the_left(edit, alpha, source, n):
    edit, alpha = edit.roll(-n, -1), alpha.roll(-n, -1)
    alpha[..., -n:] = 0
    return composite(edit, alpha, source)


def mass(weigh=lambda v: v, **options):
    """Attention whose values are the one-hot groups of the keys, first changed by a rule."""

    def mass_by_group(q, k, labels, groups):
        v = weigh(F.one_hot(labels, groups).to(q))
        return F.scaled_dot_product_attention(q, k, v.expand(len(q), -1, -1), **options)

    return mass_by_group


def token(slot_of, row_length=8, swap=False, known=False):
    def token_at(frame, y, x, frames, height, width, size):
        if frame not in frames:
            if not known:
                return None
            frame = frames[0]
        y, x = (x, y) if swap else (y, x)
        slot = slot_of(frame, frames)
        return slot * (height // size) * (width // size) + y // size * row_length + x // size

    return token_at


def half(frame, frames):
    return frames.index(frame) // 2


def statuses(rows, pending=0):
    counts = {"kept": 0, "rejected": 0, "quarantined": 0, "pending": pending}
    for _, status in rows:
        counts[status] += 1
    return counts


def straight(multiplied, alpha):
    return multiplied / alpha.clamp_min(1e-6)


def as_in_the_paper(s, t, h, w, grid, reading):
    """Right but for the released reading, which is not the paper's."""
    return (t, h, w) if reading == "shared" else (t, h + s * grid[1], w)


def rows_of_one_video(s, t, h, w, grid, reading):
    T, H, W = grid
    if reading != "released":
        return as_in_the_paper(s, t, h, w, grid, reading)
    time, rest = divmod(((s * T + t) * H + h) * W + w, H * W)
    return time, *divmod(rest, W)


def routes(rule):
    """A mask by a rule of block (L, 1), token (T,), L_s and K."""
    return lambda layers, routed, lengths: rule(
        torch.arange(layers)[:, None], torch.arange(sum(lengths)), routed, lengths[0]
    )


def places(rule):
    """Places by a rule of: whether queries are read, all placeholders, the real ones, the last K places."""

    def places_read(words, given, placeholder, tokens, read):
        found = [i for i, word in enumerate(words) if word == placeholder]
        last = list(range(len(words) - tokens, len(words)))
        return rule(read == "queries", found, [i for i in found if given[i]], last)

    return places_read


def both(logits):
    return (logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()) / 2


def cosines(a, b):
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def sizes(labels):
    return [labels.count(label) for label in set(labels)]


def adaln(row, plus=1.0):
    """Modulation by the row of each token, a rule of its number and of ``clean``."""

    def per_token_adaln(x, scale, shift, clean):
        rows = row(torch.arange(len(x)), clean).long()
        return x * (plus + scale[rows]) + shift[rows]

    return per_token_adaln


def cost(linear=8, pairs=4, fed=4):
    """The cost factor of a block with other factors: linear layers, attention pairs, feed-forward part."""

    def cost_factor(context, video, dim, inner):
        def block(tokens):
            return linear * tokens * dim**2 + pairs * tokens**2 * dim + fed * tokens * dim * inner

        return block(context + video) / block(video)

    return cost_factor


def kept(count=lambda keep: 3 * keep.sum(), where=lambda keep: keep, sign=-10):
    """PSNR of the kept region with another count, another region or another factor."""

    def kept_psnr(edited, source, keep):
        return sign * torch.log10(((edited - source) ** 2 * where(keep)).sum() / count(keep))

    return kept_psnr


def frame_by_frame(edited, source, keep):
    frames = zip(edited[:, None], source[:, None], keep[:, None], strict=True)
    return sum(kept()(*frame) for frame in frames) / len(edited)


def stepwise(factors=lambda n: np.arange(n, 0, -1), rising=True, most=1.0, back=True, order=np.argsort):
    """Holm's correction with one step done otherwise."""

    def corrected(p_values):
        p = np.array(p_values)
        at = order(p)
        raised = p[at] * factors(len(p))
        raised = (np.maximum.accumulate(raised) if rising else raised).clip(max=most)
        return raised[np.argsort(at)] if back else raised

    return corrected


def states(size):
    """A reckoning of bytes by its size of a parameter: (trained, gpus, sharded) -> bytes of each."""

    def state_bytes(parameters, trained, gpus, sharded):
        return parameters * size(trained > 0, gpus, sharded)

    return state_bytes


def traded(way):
    def trade_tokens(parts):
        n = len(parts)
        return way([part.chunk(n, 1) for part in parts], n)

    return trade_tokens


# Exercise: {part of the message: a wrong answer that earns it}
WRONG = {
    "paste": {
        "swapped": lambda e, a, s: a * s + (1 - a) * e,
        "straight colour": lambda e, a, s: e + (1 - a) * s,
        "1 - alpha": lambda e, a, s: a * e + s,
        "0 * inf is nan": lambda e, a, s: a * e + (1 - a) * s,
    },
    "move_right": {
        "matte has to move": lambda e, a, s, n: composite(e.roll(n, -1), a, s),
        "colour has to move": lambda e, a, s, n: composite(e, a.roll(n, -1), s),
        "moved the source": lambda e, a, s, n: composite(e, a, s).roll(n, -1),
        "came back on the left": lambda e, a, s, n: composite(e.roll(n, -1), a.roll(n, -1), s),
        "to the left": to_the_left,
    },
    "mass_by_group": {
        "mean over a group's keys": mass(lambda v: v / v.sum(0).clamp_min(1)),
        "the scale is missing": mass(scale=1.0),
        "groups are mixed up": mass(lambda v: v.roll(1, 1)),
        "(heads, queries, groups)": mass(lambda v: v[:, :-1]),
        "masses must sum to one": mass(lambda v: v / 2),
    },
    "token_at": {
        "x and y are swapped": token(half, swap=True),
        "a row has width / size tokens": token(half, 4),
        "the slot counts sampled frames": token(lambda f, _: f // 2),
        "two frames share a token": token(lambda f, shown: shown.index(f)),
        "never shown": token(half, known=True),
    },
    "merge": {
        "mattes do not add": lambda e, a, f, b: (
            straight(a * e + (1 - a) * b * f, a + b),
            (a + b).clamp(max=1),
        ),
        "too thin": lambda e, a, f, b: (e, torch.maximum(a, b)),
        "0 / 0": lambda e, a, f, b: ((a * e + (1 - a) * b * f) / (a + (1 - a) * b), a + (1 - a) * b),
        "multiplied by alpha": lambda e, a, f, b: (a * e + (1 - a) * b * f, a + (1 - a) * b),
        "as far as its matte": lambda e, a, f, b: (a * e + (1 - a) * f, a + (1 - a) * b),
        "swapped": lambda e, a, f, b: (straight((1 - b) * a * e + b * f, a + b - a * b), a + b - a * b),
        "not the same over": lambda e, a, f, b: ((e + f) / 2, a + (1 - a) * b),
        "shape": lambda e, a, f, b: (e, a.expand_as(e)),
    },
    "branch_mask": {
        "rows are queries": lambda sees, n: sees.T.repeat_interleave(n, 0).repeat_interleave(n, 1),
        "interleaved": lambda sees, n: sees.repeat(n, n),
        "inverted": lambda sees, n: ~sees.repeat_interleave(n, 0).repeat_interleave(n, 1),
        "boolean": lambda sees, n: torch.kron(sees.float(), torch.ones(n, n)),
        "wrong shape": lambda sees, n: sees.repeat_interleave(n, 0),
    },
    "token_position": {
        "this is the shared reading": lambda s, t, h, w, *_: (t, h, w),
        "paper: this moves along time": lambda s, t, h, w, grid, reading: (
            t + s * grid[0] * (reading != "shared"),
            h,
            w,
        ),
        "released: this moves along time": rows_of_one_video,
        "deals its table out in another order": as_in_the_paper,
        "but it must be": lambda s, t, h, w, *rest: as_in_the_paper(s, t, w, h, *rest),
    },
    "canvas_pixel": {
        "the path's own pixel": lambda pixel, place, scale, centre: (pixel - place) / scale,
        "multiplied by the scale": lambda pixel, place, scale, centre: (pixel - place) * scale + centre,
        "mirrored": lambda pixel, place, scale, centre: (place - pixel) / scale + centre,
        "is (2, -4) off the middle": lambda pixel, place, scale, centre: pixel - place + centre,
    },
    "routing_mask": {
        "AND the editing tokens": routes(lambda i, j, routed, k: (j < k) ^ (i >= routed)),
        "upside down": routes(lambda i, j, routed, k: (j < k) | (i < routed)),
        "off by one": routes(lambda i, j, routed, k: (j < k) | (i > routed)),
        "every block is given the editing tokens": routes(lambda i, j, routed, k: (i >= routed) & (j >= 0)),
        "boolean": routes(lambda i, j, routed, k: ((j < k) | (i >= routed)).float()),
        "(blocks, tokens) are": routes(lambda i, j, routed, k: ((j < k) | (i >= routed)).T),
        "wrong for L": routes(lambda i, j, routed, k: (j < k + 1) | (i >= routed)),
    },
    "places_read": {
        "that is padding": places(lambda q, found, real, last: found if q else last),
        "queries: these are the last K places": places(lambda q, found, real, last: last),
        "last: these are the queries": places(lambda q, found, real, last: real),
        "queries: they stand at [4, 5, 6, 7], not at [4, 5, 6]": places(
            lambda q, found, real, last: (real if q else last)[:-1]
        ),
        "last: the last 4 places of 10 are [6, 7, 8, 9], not [5, 6, 7, 8]": places(
            lambda q, found, real, last: real if q else [i - 1 for i in last]
        ),
    },
    "symmetric_info_nce": {
        "the sign": lambda a, b, tau: -both(cosines(a, b) / tau).mean(),
        "not normalised": lambda a, b, tau: both(a @ b.T / tau).mean(),
        "divide by the temperature": lambda a, b, tau: both(cosines(a, b) * tau).mean(),
        "let each A* find its A as well": lambda a, b, tau: (
            (cosines(a, b) / tau).log_softmax(1).diagonal().mean()
        ),
        "let each A find its A* as well": lambda a, b, tau: (
            (cosines(a, b) / tau).log_softmax(0).diagonal().mean()
        ),
        "the sum of both directions": lambda a, b, tau: 2 * both(cosines(a, b) / tau).mean(),
        "the sum over positions": lambda a, b, tau: both(cosines(a, b) / tau).sum(),
        "no negatives": lambda a, b, tau: cosines(a, b).diagonal().mean() / tau,
        "take the mean": lambda a, b, tau: both(cosines(a, b) / tau),
        "but it must be": lambda a, b, tau: both(cosines(a, b) / tau).mean() - 0.1,
    },
    "best_estimate": {
        "all alike": lambda labels: -math.log(len(labels)),
        "a mean over groups": lambda labels: -sum(map(math.log, sizes(labels))) / len(sizes(labels)),
        "the mean size": lambda labels: -math.log(len(labels) / len(sizes(labels))),
        "not the group once": lambda labels: -sum(map(math.log, sizes(labels))) / len(labels),
        "the sign": lambda labels: sum(k * math.log(k) for k in sizes(labels)) / len(labels),
        "but it must be": lambda labels: -1.0,
    },
    "count_statuses": {
        "three inputs, one row each": lambda inputs, rows: statuses([]),
        "give a dict of four counts": lambda inputs, rows: [status for _, status in rows],
        "an input without a row is pending": lambda inputs, rows: statuses(dict(rows).items()),
        "count keys, not rows": lambda inputs, rows: statuses(
            rows, len(set(inputs) - {key for key, _ in rows})
        ),
        "must not hide an input": lambda inputs, rows: statuses(dict(rows).items(), len(inputs) - len(rows)),
        "leave rows of other keys out": lambda inputs, rows: statuses(
            dict(rows).items(), len(set(inputs) - {key for key, _ in rows})
        ),
        "it is one input": lambda inputs, rows: statuses(
            [(key, dict(rows)[key]) for key in inputs if key in dict(rows)],
            len([key for key in inputs if key not in dict(rows)]),
        ),
    },
    "own_colours": {
        "not finite": lambda frame, plate, alpha: (frame - (1 - alpha) * plate) / alpha,
        "the clip's own colour": lambda frame, plate, alpha: frame,
        "premultiplied": lambda frame, plate, alpha: frame - (1 - alpha) * plate,
        "wrong by up to": lambda frame, plate, alpha: ((frame - plate) / alpha.clamp_min(0.02)).clamp(0, 1),
        "the result is the plate": lambda frame, plate, alpha: (
            (frame - (1 - alpha) * plate) / alpha.clamp_min(0.02)
        ).clamp(0, 1),
        "clamp it": lambda frame, plate, alpha: torch.where(
            alpha < 0.02, plate, (frame - (1 - alpha) * plate) / alpha.clamp_min(0.02)
        ),
        "but it must be (3, 6, 8)": lambda frame, plate, alpha: frame[:1],
    },
    "per_token_adaln": {
        "upside down": adaln(lambda i, clean: i < clean),
        "multiply by 1 + scale": adaln(lambda i, clean: i >= clean, plus=0.0),
        "every token is modulated as clean": adaln(lambda i, clean: i < 0),
        "every token is modulated as noisy": adaln(lambda i, clean: i >= 0),
        "off by one": adaln(lambda i, clean: i > clean),
        "but x is (6, 3)": lambda x, scale, shift, clean: x[:clean] * (1 + scale[0]) + shift[0],
        "wrong for S = 6, clean = 2": adaln(lambda i, clean: i + 1 >= clean),
    },
    "cost_factor": {
        "upside down": lambda *sizes: 1 / cost()(*sizes),
        "a factor of 1 is no change": lambda *sizes: cost()(*sizes) - 1,
        "the feed-forward part is missing": cost(fed=0),
        "linear layers are missing": cost(linear=0),
        "two matrix products have pairs": cost(pairs=2),
        "attention has four linear layers": cost(linear=6),
        "the feed-forward part has two linear layers": cost(fed=2),
        "pairs are missing: this is the ratio of tokens": lambda context, video, dim, inner: (
            (context + video) / video
        ),
        "it is": lambda *sizes: cost()(*sizes) + 0.1,
    },
    "state_bytes": {
        "the average (EMA) is kept too": states(lambda trained, gpus, sharded: 16 / (gpus if sharded else 1)),
        "keep 20 bytes each": states(lambda trained, gpus, sharded: 12),
        "FSDP2 gives each GPU its share": states(lambda trained, gpus, sharded: 20),
        "that is 2,500 bytes": states(lambda trained, gpus, sharded: 20 if gpus == 1 else 5),
        "DDP shares nothing": states(lambda trained, gpus, sharded: 20 / gpus),
        "has no gradient": states(lambda trained, gpus, sharded: 20 / (gpus if sharded else 1)),
        "weight and average": states(lambda trained, gpus, sharded: trained * 20 / (gpus if sharded else 1)),
    },
    "trade_tokens": {
        "2 parts, not 1": traded(lambda pieces, n: [torch.cat(pieces[0])]),
        "nothing was traded": lambda parts: parts,
        "a part is (2, 3, 2)": traded(lambda pieces, n: list(pieces[0])),
        "the wrong order": traded(
            lambda pieces, n: [torch.cat([row[j] for row in reversed(pieces)]) for j in range(n)]
        ),
        "the wrong GPU": traded(
            lambda pieces, n: [torch.cat([row[-1 - j] for row in pieces]) for j in range(n)]
        ),
    },
    "kept_psnr": {
        "pixels outside count as perfect": kept(lambda keep: 3 * keep.numel()),
        "all pixels count": kept(lambda keep: 3 * keep.numel(), torch.ones_like),
        "the pixels that were edited": kept(lambda keep: 3 * (~keep).sum(), lambda keep: ~keep),
        "three channels": kept(lambda keep: keep.sum()),
        "pool the squared error first": frame_by_frame,
        "the sign": kept(sign=10),
        "ten times the logarithm": kept(sign=-1),
        "but it must be": kept(lambda keep: 2 * keep.sum()),
    },
    "corrected": {
        "this is Bonferroni": stepwise(lambda n: n),
        "nor above 1": stepwise(rising=False, most=9.0),
        "in the sorted order a value may not be below": stepwise(rising=False),
        "a p value is at most 1": stepwise(most=9.0),
        "in the old order": stepwise(back=False),
        "sort first": stepwise(rising=False, order=lambda p: np.arange(len(p))),
        "nothing is corrected": lambda p_values: p_values,
        "p values go in": lambda p_values: p_values[1:],
        "but it must be": lambda p_values: [p / 2 for p in p_values],
    },
}
