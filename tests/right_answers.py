"""Right answers to the exercises that are written in another way than the notebooks' solutions."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from vera_lite.media.clip import composite


def paste_in_place(edit, alpha, source):
    final = source.clone()
    inside = (alpha > 0).expand_as(source)
    final[inside] += (alpha * (edit - source))[inside]
    return final


def paste_by_pixel(edit, alpha, source):
    edit, alpha, source = (x.numpy().astype(np.float64) for x in (edit, alpha, source))
    return source + alpha * (np.where(alpha > 0, edit, 0) - source) * (alpha > 0)


def shift_by_copying(layer, pixels):
    moved = torch.zeros_like(layer)
    moved[..., pixels:] = layer[..., : layer.shape[-1] - pixels]
    return moved


def shift_by_rolling(layer, pixels):
    moved = layer.roll(pixels, -1)
    moved[..., :pixels] = 0
    return moved


def move_by_matte(edit, alpha, source, pixels):
    return composite(edit.roll(pixels, -1), shift_by_rolling(alpha, pixels), source)


def move_by_columns(edit, alpha, source, pixels):
    final = source.clone().double()
    for x in range(pixels, source.shape[-1]):
        a = alpha[..., x - pixels]
        final[..., x] = a * edit[..., x - pixels] + (1 - a) * source[..., x]
    return final


def mass_by_matrix(q, k, labels, groups):
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    return weights @ F.one_hot(labels, groups).to(weights)


def mass_by_loops(q, k, labels, groups):
    weights = (q.double() @ k.double().mT / q.shape[-1] ** 0.5).softmax(-1)
    return torch.stack([weights[..., labels == g].sum(-1) for g in range(groups)], -1)


def slot_by_dict(frame, frames):
    return {f: i // 2 for i, f in enumerate(frames)}.get(frame)


def slot_by_search(frame, frames):
    for slot, pair in enumerate(zip(frames[::2], frames[1::2], strict=True)):
        if frame in pair:
            return slot
    return None


def token_in_array(frame, y, x, frames, height, width, size):
    slots = np.arange(len(frames) // 2 * (height // size) * (width // size))
    slots = slots.reshape(-1, height // size, width // size)
    slot = slot_by_dict(frame, frames)
    return None if slot is None else slots[slot, y // size, x // size]


def token_by_sum(frame, y, x, frames, height, width, size):
    if frame not in frames:
        return None
    before = frames.index(frame) // 2 * (height // size) * (width // size)
    return torch.tensor(before + (y // size) * (width // size) + x // size)


def merge_with_where(top_edit, top_alpha, bottom_edit, bottom_alpha):
    alpha = 1 - (1 - top_alpha) * (1 - bottom_alpha)
    colour = top_alpha * top_edit + (1 - top_alpha) * bottom_alpha * bottom_edit
    return torch.where(alpha > 0, colour / alpha.clamp_min(1e-12), torch.zeros(())), alpha


def merge_as_mean(top_edit, top_alpha, bottom_edit, bottom_alpha):
    shown = (1 - top_alpha) * bottom_alpha
    alpha = top_alpha + shown
    share = torch.nan_to_num(top_alpha / alpha, 1.0)
    return [share * top_edit + (1 - share) * bottom_edit, alpha]


def mask_by_branch(sees, tokens):
    branch = torch.arange(3 * tokens) // tokens
    return sees[branch][:, branch]


def mask_by_loops(sees, tokens):
    mask = np.zeros((3 * tokens, 3 * tokens), dtype=bool)
    for i in range(3):
        for j in range(3):
            mask[i * tokens : (i + 1) * tokens, j * tokens : (j + 1) * tokens] = sees[i, j]
    return mask


def erope_by_branch(s, t, h, w, grid):
    if s == 1:
        h = h + grid[1]
    return [t, h, w]


def released_by_table(s, t, h, w, grid):
    T, H, W = grid
    table = [(a, b, c) for a in range(T) for b in range(2 * H) for c in range(W)]
    return table[s * T * H * W + t * H * W + h * W + w]


def released_by_numpy(s, t, h, w, grid):
    T, H, W = grid
    index = np.ravel_multi_index((s, t, h, w), (2, T, H, W))
    return np.array(np.unravel_index(index, (T, 2 * H, W)))


def canvas_by_solving(pixel, place, scale, centre):
    return centre - (place - pixel) / scale


def canvas_by_axis(pixel, place, scale, centre):
    return [float(centre[i] + (pixel[i] - place[i]) / scale) for i in range(2)]


def mask_by_rows(layers, routed, lengths):
    mask = torch.ones(layers, sum(lengths), dtype=torch.bool)
    mask[:routed, lengths[0] :] = False
    return mask


def mask_in_lists(layers, routed, lengths):
    return [[j < lengths[0] or i >= routed for j in range(sum(lengths))] for i in range(layers)]


def places_from_the_end(words, given, placeholder, tokens, read):
    if read == "last":
        return range(len(words) - tokens, len(words))
    return [i for i, word in enumerate(words) if word == placeholder][-tokens:]


def places_by_index(words, given, placeholder, tokens, read):
    start = len(words) - tokens
    while read == "queries" and words[start] != placeholder or words[start + tokens - 1 :][0] == "?":
        start -= 1
    if read == "queries":
        start = max(i for i, word in enumerate(words) if word == placeholder) - tokens + 1
    return torch.arange(start, start + tokens)


def scores_by_division(features, reference, temperature):
    lengths = features.norm(dim=1)[:, None] * reference.norm(dim=1)
    return features @ reference.T / lengths / temperature


def scores_pairwise(features, reference, temperature):
    return F.cosine_similarity(features[:, None], reference[None], dim=-1) / temperature


def nce_by_cross_entropy(features, reference, temperature):
    logits = scores_by_division(features, reference, temperature)
    here = torch.arange(len(logits))
    return -(F.cross_entropy(logits, here) + F.cross_entropy(logits.T, here)) / 2


def nce_by_logsumexp(features, reference, temperature):
    logits = scores_pairwise(features.double(), reference.double(), temperature)
    both = logits.logsumexp(1) + logits.logsumexp(0)
    return float((logits.diagonal() - both / 2).mean())


def best_by_counts(labels):
    counts = torch.tensor(labels).unique(return_counts=True)[1]
    return -(counts * counts.log()).sum() / len(labels)


def best_by_entropy(labels):
    share = np.unique(labels, return_counts=True)[1] / len(labels)
    return -math.log(len(labels)) - (share * np.log(share)).sum()


def mse_by_selecting(edited, source, keep):
    chosen = keep.expand_as(edited)
    return F.mse_loss(edited[chosen], source[chosen])


def mse_by_numpy(edited, source, keep):
    error = ((edited - source) ** 2).numpy().astype(float)
    return np.average(error, weights=np.broadcast_to(keep.numpy(), error.shape))


def corrected_by_loop(p_values):
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    raised, before = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        before = raised[i] = min(1.0, max(before, (len(p_values) - rank) * p_values[i]))
    return raised


def corrected_by_torch(p_values):
    values, order = torch.tensor(p_values, dtype=torch.float64).sort()
    raised = (values * torch.arange(len(values), 0, -1)).cummax(0).values.clamp(max=1)
    return raised[order.argsort()]


def adaln_by_rows(x, scale, shift, clean):
    out = torch.empty_like(x)
    out[:clean] = x[:clean] * (1 + scale[0]) + shift[0]
    out[clean:] = x[clean:] * (1 + scale[1]) + shift[1]
    return out


def adaln_by_where(x, scale, shift, clean):
    first = (torch.arange(len(x)) < clean)[:, None]
    return torch.where(first, x + x * scale[0] + shift[0], x + x * scale[1] + shift[1])


def cost_by_parts(tokens, dim, inner):
    attention = 4 * (2 * tokens * dim * dim) + 2 * (2 * tokens * tokens * dim)
    return attention + 2 * tokens * dim * inner + 2 * tokens * inner * dim


def cost_per_token(tokens, dim, inner):
    return float(tokens) * 4 * dim * (2 * dim + tokens + inner)


def statuses_by_loop(inputs, rows):
    found = {}
    for key in inputs:
        for other, status in rows:
            if other == key:
                found[key] = status
    return found


def ledger_by_counter(inputs, rows):
    found = {key: "pending" for key in inputs} | {key: status for key, status in rows if key in inputs}
    return {s: list(found.values()).count(s) for s in ("kept", "rejected", "quarantined", "pending")}


def ledger_by_sets(inputs, rows):
    keys = set(inputs)
    sets = {s: {k for k, status in rows if status == s} & keys for s in ("pending", "kept")}
    sets |= {s: {k for k, status in rows if status == s} & keys for s in ("rejected", "quarantined")}
    sets["pending"] = keys.difference(*sets.values())
    return {status: np.int64(len(members)) for status, members in sets.items()}


def colours_by_mask(frame, plate, alpha):
    colours, solid = plate.clone().clamp(0, 1), (alpha >= 0.02).expand_as(plate)
    colours[solid] = (plate + (frame - plate) / alpha.clamp_min(1e-9))[solid].clamp(0, 1)
    return colours


def trade_by_whole(parts):
    return torch.cat(list(parts)).chunk(len(parts), dim=1)


def trade_by_index(parts):
    n, tokens = len(parts), parts[0].shape[1]
    share = tokens // n
    return [torch.cat([part[:, j * share : (j + 1) * share] for part in parts]) for j in range(n)]


# Exercise: right answers, each unlike the others
RIGHT = {
    "paste": [paste_in_place, paste_by_pixel, composite],
    "shift": [
        shift_by_copying,
        shift_by_rolling,
        lambda layer, n: F.pad(layer, (n, -n)),
    ],
    "move_right": [
        move_by_matte,
        move_by_columns,
        lambda e, a, s, n: composite(shift_by_copying(e, n), shift_by_copying(a, n), s),
    ],
    "lift": [
        lambda a, c: float((a.mean(0) * c).sum() / a.mean(0).sum() / c.mean()),
        lambda a, c: (a.sum(0) @ c) * len(c) / (a.sum() * c.sum()),
        lambda a, c: np.average(c.numpy(), weights=a.numpy().sum(0)) / c.numpy().mean(),
    ],
    "mass_by_group": [
        mass_by_matrix,
        mass_by_loops,
        lambda q, k, labels, groups: F.scaled_dot_product_attention(
            q, k, (labels[:, None] == torch.arange(groups)).to(q).expand(len(q), -1, -1)
        ).bfloat16(),
    ],
    "slot_of": [
        slot_by_dict,
        slot_by_search,
        lambda frame, frames: np.int64(frames.index(frame)) // 2 if frame in frames else None,
    ],
    "token_at": [
        token_in_array,
        token_by_sum,
        lambda f, y, x, frames, h, w, s: (
            None if f not in frames else (frames.index(f) // 2 * (h // s) + y // s) * (w // s) + x // s
        ),
    ],
    "step": [
        lambda x, g, s, f: f / s * x + (1 - f / s) * g,
        lambda x, g, s, f: torch.lerp(g, x, f / s),
        lambda x, g, s, f: x.numpy().astype(float) + (g - x).numpy() * (1 - f / s),
    ],
    "merge_mattes": [
        lambda a, b: 1 - (1 - a) * (1 - b),
        lambda a, b: a + b - a * b,
        lambda a, b: torch.lerp(b, torch.ones(()), a).double(),
    ],
    "merge": [
        merge_with_where,
        merge_as_mean,
        lambda e, a, f, b: tuple(x.double() for x in merge_with_where(e, a, f, b)),
    ],
    "branch_mask": [
        mask_by_branch,
        mask_by_loops,
        lambda sees, n: torch.kron(sees.int(), torch.ones(n, n).int()).bool(),
    ],
    "erope_position": [
        erope_by_branch,
        lambda s, t, h, w, grid: torch.tensor([t, h + s * grid[1], w]),
        lambda s, t, h, w, grid: (t, np.arange(2 * grid[1]).reshape(2, -1)[s, h], w),
    ],
    "released_position": [
        released_by_table,
        released_by_numpy,
        lambda s, t, h, w, grid: (
            (s * grid[0] + t) // 2,
            (s * grid[0] + t) % 2 * grid[1] + h,
            w,
        ),
    ],
    "canvas_pixel": [
        canvas_by_solving,
        canvas_by_axis,
        lambda x, p, s, c: ((x - p).double() / s + c).numpy(),
    ],
    "lead": [
        lambda p, n: math.log(p * (n[1] + n[2])) - math.log((1 - p) * n[0]),
        lambda p, n: torch.logit(torch.tensor(p)) + math.log((n[1] + n[2]) / n[0]),
        lambda p, n: -np.log((1 / p - 1) * n[0] / (n[1] + n[2])),
    ],
    "routing_mask": [
        mask_by_rows,
        mask_in_lists,
        lambda layers, routed, n: (
            np.arange(layers)[:, None] // max(routed, 1) * (routed > 0)
            + (routed == 0)
            + (np.arange(sum(n)) < n[0])
            > 0
        ),
    ],
    "places_read": [
        places_from_the_end,
        places_by_index,
        lambda words, given, placeholder, tokens, read: np.flatnonzero(
            (np.array(words) == placeholder) & np.array(given)
            if read == "queries"
            else np.arange(len(words)) >= len(words) - tokens
        ),
    ],
    "scores": [
        scores_by_division,
        scores_pairwise,
        lambda a, b, tau: (F.normalize(a) @ (F.normalize(b) / tau).T).double(),
    ],
    "symmetric_info_nce": [
        nce_by_cross_entropy,
        nce_by_logsumexp,
        lambda a, b, tau: nce_by_cross_entropy(b, a, tau)[None].squeeze(),
    ],
    "best_estimate": [
        best_by_counts,
        best_by_entropy,
        lambda labels: -sum(math.log(labels.count(label)) for label in labels) / len(labels),
    ],
    "kept_mse": [
        mse_by_selecting,
        mse_by_numpy,
        lambda a, b, keep: ((a - b) * keep).double().square().sum().item() / (3 * int(keep.sum())),
    ],
    "kept_psnr": [
        lambda a, b, keep: -10 * math.log10(mse_by_numpy(a, b, keep)),
        lambda a, b, keep: -20 * torch.log10(mse_by_selecting(a, b, keep).sqrt()),
        lambda a, b, keep: 10 * np.log10(1 / mse_by_numpy(a, b, keep)),
    ],
    "corrected": [
        corrected_by_loop,
        corrected_by_torch,
        lambda p: np.array(corrected_by_loop(p), dtype=np.float32),
    ],
    "modulate": [
        lambda x, scale, shift: x + x * scale + shift,
        lambda x, scale, shift: torch.addcmul(shift, x, 1 + scale),
        lambda x, scale, shift: (x.double() * (1 + scale.double()) + shift.double()).numpy(),
    ],
    "per_token_adaln": [
        adaln_by_rows,
        adaln_by_where,
        lambda x, scale, shift, clean: torch.cat(
            [x[:clean] * (1 + scale[:1]) + shift[:1], x[clean:] * (1 + scale[1:]) + shift[1:]]
        ).double(),
    ],
    "block_cost": [
        cost_by_parts,
        cost_per_token,
        lambda S, D, F: np.int64(8) * S * D**2 + 4 * S**2 * D + 4 * S * D * F,
    ],
    "cost_factor": [
        lambda c, v, D, F: cost_by_parts(c + v, D, F) / cost_by_parts(v, D, F),
        lambda c, v, D, F: (1 + c / v) * (2 * D + F + c + v) / (2 * D + F + v),
        lambda c, v, D, F: np.exp(np.log(cost_per_token(c + v, D, F)) - np.log(cost_per_token(v, D, F))),
    ],
    "status_of_inputs": [
        statuses_by_loop,
        lambda inputs, rows: {key: dict(rows)[key] for key in dict(rows).keys() & set(inputs)},
        lambda inputs, rows: dict(filter(lambda row: row[0] in inputs, rows)),
    ],
    "count_statuses": [
        ledger_by_counter,
        ledger_by_sets,
        lambda inputs, rows: {s: float(n) for s, n in ledger_by_counter(set(inputs), set(rows)).items()},
    ],
    "own_colours": [
        colours_by_mask,
        lambda frame, plate, alpha: colours_by_mask(frame.double(), plate.double(), alpha.double()).numpy(),
        lambda frame, plate, alpha: torch.where(
            alpha < 0.02, plate, torch.nan_to_num((frame - plate) / alpha + plate).clamp(0, 1)
        ),
    ],
    "bytes_per_parameter": [
        lambda trained: 8 + 12 * trained,
        lambda trained: 4.0 * (2 + 3 * bool(trained)),
        lambda trained: np.int64(20 if trained else 8),
    ],
    "state_bytes": [
        lambda p, t, gpus, sharded: (20 * t + 8 * (p - t)) / gpus ** int(sharded),
        lambda p, t, gpus, sharded: torch.tensor((8 * p + 12 * t) / (gpus if sharded else 1)),
        lambda p, t, gpus, sharded: np.float64(4 * (2 * p + 3 * t)) / [1, gpus][sharded],
    ],
    "trade_tokens": [
        trade_by_whole,
        trade_by_index,
        lambda parts: [part.double() for part in trade_by_whole(parts)],
    ],
}
