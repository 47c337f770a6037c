"""Notebook 09: bytes of states, and tokens traded back for heads."""

import torch

from vera_lite.exercises.judge import exercise


@exercise(
    lambda draw: [(True,), (False,)],
    {
        "the average (EMA) is kept too: 4 more bytes": lambda trained: 16 if trained else 4,
        "a frozen parameter has no gradient and no moments": lambda trained: 20,
        "a frozen parameter still has its weight and its average": lambda trained: 20 * trained,
        "4 bytes are missing: weight, average, gradient and *two* moments": lambda trained: (
            16 if trained else 8
        ),
        "count bytes: float32 has 4": lambda trained: 5 if trained else 2,
    },
)
def bytes_per_parameter(trained):
    return 20 if trained else 8


def _trainings(draw):
    for gpus, sharded in ((1, True), (8, True), (8, False), (4, True)):
        parameters = 1000 * draw.integer(2, 9)
        yield parameters, draw.integer(0, parameters), gpus, sharded


def _states(size=lambda parameters, trained: 8 * parameters + 12 * trained, share=lambda n, s: n if s else 1):
    return lambda parameters, trained, gpus, sharded: size(parameters, trained) / share(gpus, sharded)


@exercise(
    _trainings,
    {
        "FSDP2 gives each GPU its share: divide by the number of GPUs": _states(share=lambda n, s: 1),
        "DDP shares nothing: every GPU holds everything": _states(share=lambda n, s: n),
        "upside down: sharded is FSDP2": _states(share=lambda n, s: 1 if s else n),
        "a frozen parameter has no gradient and no moments": _states(lambda p, t: 20 * p),
        "frozen parameters have states, too: weight and average": _states(lambda p, t: 20 * t),
        "the average (EMA) is kept too: 4 more bytes of each parameter": _states(lambda p, t: 4 * p + 12 * t),
        "`trained` of the `parameters` are trained: the trained ones are counted twice": _states(
            lambda p, t: 8 * p + 20 * t
        ),
    },
)
def state_bytes(parameters, trained, gpus, sharded):
    return _states()(parameters, trained, gpus, sharded)


def _parts(draw):
    for n, heads, tokens in ((2, 4, 6), (3, 3, 9)):
        yield (list(draw.normal(heads, tokens, 2).chunk(n, 0)),)


def _traded(way):
    def trade(parts):
        n = len(parts)
        return way([part.chunk(n, 1) for part in parts], n)

    return trade


@exercise(
    _parts,
    {
        "nothing was traded: each GPU still has its heads alone": lambda parts: parts,
        "the heads are in the wrong order: first those of GPU 0": _traded(
            lambda pieces, n: [torch.cat([row[j] for row in reversed(pieces)]) for j in range(n)]
        ),
        "tokens went to the wrong GPU": _traded(
            lambda pieces, n: [torch.cat([row[n - 1 - j] for row in pieces]) for j in range(n)]
        ),
        "this is the list for GPU 0 alone: every GPU gets its part": _traded(
            lambda pieces, n: [torch.cat([row[0] for row in pieces])]
        ),
        "every GPU has got everything: only its own tokens": lambda parts: [torch.cat(parts)] * len(parts),
        "joined along the tokens: join along the heads": _traded(
            lambda pieces, n: [torch.cat([row[j] for row in pieces], 1) for j in range(n)]
        ),
    },
)
def trade_tokens(parts):
    return _traded(lambda pieces, n: [torch.cat([row[j] for row in pieces]) for j in range(n)])(parts)
