"""InfoNCE in chunks: the plain formula's numbers, without its matrix."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vera_lite.diffusion.infonce import info_nce


def plain(features, reference, temperature=0.07):
    """Eq. 5 as it is written."""
    logits = F.normalize(features, dim=-1) @ F.normalize(reference, dim=-1).mT / temperature
    both = logits.log_softmax(-1) + logits.log_softmax(-2)
    return both.diagonal(dim1=-2, dim2=-1).mean(-1) / 2


def chunked(*args, **kwargs):
    return info_nce(*args, **kwargs)[0]


def pair(batch=2, positions=50, channels=32, noise=1.0, seed=0):
    """Features and a reference that agree but for noise."""
    generator = torch.Generator().manual_seed(seed)
    features, other = torch.randn(2, batch, positions, channels, generator=generator)
    return features.double(), (features + noise * other).double()  # numbers that float32 has too


def run(function, features, reference, dtype=torch.float64, **kwargs):
    """The estimate, and the gradients of a sum in which each clip has a weight of its own."""
    features, reference = (x.to(dtype, copy=True).requires_grad_() for x in (features, reference))
    estimate = function(features, reference, **kwargs)
    gradients = torch.autograd.grad(
        estimate @ torch.arange(1, len(estimate) + 1).to(estimate), [features, reference]
    )
    return estimate.detach(), *gradients


def relative_errors(ours, exact):
    return [
        float((a.double() - b).norm() / b.norm().clamp_min(1e-300)) for a, b in zip(ours, exact, strict=True)
    ]


@pytest.mark.parametrize(
    ("noise", "tolerance"),
    [(100, 1e-6), (1, 1e-6), (0.1, 4e-6)],  # last: nearly perfect, where the plain formula is off by 1e-5
)
@pytest.mark.parametrize(
    ("batch", "positions", "chunk"), [(2, 50, 16), (3, 48, 16), (1, 37, 256), (1, 20, 1)]
)
def test_chunks_give_the_plain_formula(batch, positions, chunk, noise, tolerance):
    inputs = pair(batch, positions, noise=noise)
    exact = run(plain, *inputs)
    assert max(relative_errors(run(chunked, *inputs, chunk=chunk), exact)) < 1e-11
    assert max(relative_errors(run(chunked, *inputs, torch.float32, chunk=chunk), exact)) < tolerance


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_gradients_are_derivatives(temperature):
    features, reference = pair(2, 7, 3)
    inputs = features.requires_grad_(), reference.requires_grad_()
    assert torch.autograd.gradcheck(lambda f, r: chunked(f, r, temperature), inputs)


def test_one_position_is_always_right():
    estimate, *gradients = run(chunked, *pair(3, 1))
    torch.testing.assert_close(estimate, torch.zeros(3).double())
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros(3, 1, 32).double())


def test_rank_by_hand():
    features = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    # Cosines: (0.6, 0, 1), (0.8, 1, 0), (0.99, 0.71, 0.71): row 2's own ties with column 1.
    reference = torch.tensor([[[3.0, 4.0], [0.0, 2.0], [5.0, 0.0]]])
    rank = info_nce(features.requires_grad_(), reference, chunk=2)[1]
    assert rank.tolist() == [[2, 1, 3]] and rank.dtype == torch.int64 and not rank.requires_grad


def test_chance():
    alike = torch.ones(1, 300, 8)
    estimate, rank = info_nce(alike, 2 * alike)
    assert float(estimate) == pytest.approx(-math.log(300), abs=1e-5) and (rank == 300).all()
    features, _ = pair(1, 2000, 64, seed=1)
    estimate, rank = info_nce(features, pair(1, 2000, 64, seed=2)[0], temperature=0.2)
    assert float(estimate) == pytest.approx(-math.log(2000) - 1 / (2 * 64 * 0.2**2), abs=0.02)
    assert float(rank.double().mean()) == pytest.approx(1000.5, rel=0.03)


def test_length_and_order_do_not_matter():
    features, reference = pair()
    expected = chunked(features, reference)
    scales = pair(channels=1)[0].exp()
    torch.testing.assert_close(chunked(features * scales, reference / scales), expected)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(chunked(features[:, order], reference[:, order]), expected)
    assert (chunked(features, reference[:, order]) < expected - 1).all()


def test_look_alikes_are_each_others_negatives():
    features = pair(1, 99, 64)[0].float()[:, torch.arange(99) // 3]
    estimate, rank = info_nce(features, features, chunk=10)
    assert float(estimate) == pytest.approx(-math.log(3), abs=1e-3) and estimate < -math.log(3)
    assert (rank == 3).all()


def test_zero_rows_have_no_direction():
    features, reference = pair()
    features[0, 3] = reference[1, 7] = 0
    expected, *_ = run(plain, features, reference)
    estimate, gradient, reference_gradient = run(chunked, features, reference)
    torch.testing.assert_close(estimate, expected)
    assert not gradient[0, 3].any() and not reference_gradient[1, 7].any()
    assert gradient[0, :3].all() and gradient.abs().max() < 1


def test_autocast_and_bfloat16_leave_the_logits_float32():
    inputs = pair()
    expected = run(chunked, *inputs, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = run(chunked, *inputs, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    rounded = [x.bfloat16() for x in inputs]
    ours = run(chunked, *rounded, torch.bfloat16)
    assert [x.dtype for x in ours] == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert torch.equal(ours[0], chunked(*(x.float() for x in rounded)))


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation puts out."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        tensors = [x for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.numel = max([self.numel, *(x.numel() for x in tensors)])
        return out


def test_the_matrix_of_all_pairs_never_exists():
    inputs, sizes = pair(1, 600, 8), {}
    for function in (plain, chunked):
        with Largest() as largest:
            run(function, *inputs, torch.float32, **({"chunk": 16} if function is chunked else {}))
        sizes[function] = largest.numel
    assert sizes[plain] == 600 * 600  # the tool sees it where it is
    assert sizes[chunked] == 16 * 600


def test_a_fixed_reference_costs_no_gradient():
    features, reference = pair(1, 50, 8)
    in_place = {torch.ops.aten.baddbmm_: lambda _, a, b, **__: 2 * math.prod(a) * b[-1]}  # torch counts none
    for fixed, products in ((False, 4), (True, 3)):  # forward, again, one a gradient
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            chunked(features.requires_grad_(), reference.requires_grad_(not fixed), chunk=16).sum().backward()
        assert counter.get_total_flops() == products * 2 * 50 * 50 * 8


@pytest.mark.parametrize(
    ("shapes", "options"),
    [
        (((2, 9, 4), (2, 8, 4)), {}),
        (((9, 4), (9, 4)), {}),
        (((2, 0, 4), (2, 0, 4)), {}),
        (((2, 9, 4), (2, 9, 4)), {"temperature": 0}),
        (((2, 9, 4), (2, 9, 4)), {"temperature": math.nan}),
        (((2, 9, 4), (2, 9, 4)), {"chunk": 0}),
    ],
)
def test_bad_input_is_refused(shapes, options):
    with pytest.raises(ValueError):
        info_nce(*map(torch.zeros, shapes), **options)
