"""Every measurement against a dense float64 softmax, over random masks, grouped heads and ragged blocks."""

import json
import math
import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vera_lite.diagnostics import (
    AttentionCall,
    AttentionShape,
    CallSite,
    Columns,
    GroupMass,
    RowReduce,
    Rows,
    StoreQK,
    entropy,
    exact,
)

MASKS = ["none", "causal", "bool", "additive", "keys", "heads", "floor", "bfloat16"]


def make_call(
    seed=0, batch=1, kv_heads=1, group=1, queries=6, keys=6, dim=8, value_dim=None, mask="none", dtype=None
):
    """A call as a model makes it: heads are a transposed view, and masks block some rows wholly."""
    g = torch.Generator().manual_seed(seed)
    heads = kv_heads * group
    query = torch.randn(batch, queries, heads, dim, generator=g).transpose(1, 2)
    key = torch.randn(batch, keys, kv_heads, dim, generator=g).transpose(1, 2)
    value = torch.randn(batch, keys, kv_heads, value_dim or dim, generator=g).transpose(1, 2)
    query, key, value = (x.to(dtype or torch.float32) for x in (query, key, value))
    allowed = torch.rand(queries, keys, generator=g) > 0.4
    allowed[seed % queries] = False
    zeros = torch.zeros(queries, keys)
    masks = {
        "none": None,
        "causal": None,
        "bool": allowed.expand(batch, 1, -1, -1),
        "additive": zeros.masked_fill(~allowed, -torch.inf) + torch.randn(queries, keys, generator=g),
        "keys": (torch.rand(batch, 1, 1, keys, generator=g) > 0.4),
        "heads": allowed & (torch.rand(heads, queries, keys, generator=g) > 0.3),
        "floor": zeros.masked_fill(~allowed, torch.finfo(torch.float32).min)[None, None],
        "bfloat16": zeros.masked_fill(~allowed, -torch.inf).bfloat16(),
    }
    attn_mask, is_causal, scale = masks[mask], mask == "causal", 0.8 / math.sqrt(dim)
    kernel_mask = (
        attn_mask if attn_mask is None or attn_mask.dtype == torch.bool else attn_mask.to(query.dtype)
    )
    output = F.scaled_dot_product_attention(
        query, key, value, kernel_mask, is_causal=is_causal, scale=scale, enable_gqa=True
    )
    return AttentionCall(CallSite("blocks.0.attn1"), query, key, value, attn_mask, is_causal, scale, output)


def oracle(call):
    """Dense attention in float64, (B, H, Q, K)."""
    group = call.query.shape[1] // call.key.shape[1]
    key = call.key.double().repeat_interleave(group, dim=1)
    logits = torch.einsum("bhqd,bhkd->bhqk", call.query.double(), key) * call.scale
    if call.is_causal:
        logits = logits.where(torch.ones(logits.shape[-2:]).tril() > 0, -torch.inf)
    if call.mask is not None and call.mask.dtype == torch.bool:
        logits = logits.where(call.mask, -torch.inf)
    elif call.mask is not None:
        logits = logits + call.mask.double()
    return logits.softmax(-1).where((logits > -torch.inf).any(-1, keepdim=True), 0)


def labels(count, groups, seed):
    """Random labels with -1 among them."""
    return torch.randint(-1, groups, (count,), generator=torch.Generator().manual_seed(seed))


def row_entropy(weights, _queries):
    return entropy(weights, normalised=False)[..., None]


def sums(labels, groups):
    """(n,) -> (n, m) float64, the oracle's own way."""
    return torch.stack([(labels == g).double() for g in range(groups)], dim=1)


calls = st.builds(
    dict,
    seed=st.integers(0, 999),
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    queries=st.integers(1, 23),
    keys=st.integers(1, 23),
    dim=st.sampled_from([5, 8, 16]),
    value_dim=st.sampled_from([None, 3, 24]),
    mask=st.sampled_from(MASKS),
)


def check(measurement, call, expected, names=None):
    """Values, certificate and the promised size; float32 products leave 1e-6."""
    result = measurement(call)
    assert (result.values - expected).abs().max() <= 1e-6
    assert result.values.dtype == torch.float32 and result.residual <= 1e-5
    assert measurement.cost(AttentionShape.of(call)).result_bytes == result.values.nbytes
    assert names is None or result.names == names
    return result


examples = settings(max_examples=40, deadline=None)
blocks = st.sampled_from([1, 300, 2000, 2**20])  # bytes: from one row to everything


@examples
@given(calls, blocks, st.integers(0, 99))
def test_rows(sizes, block, seed):
    call = make_call(**sizes)
    queries = torch.randperm(call.query.shape[2], generator=torch.Generator().manual_seed(seed))[:5]
    heads = [call.query.shape[1] - 1, 0]
    expected = oracle(call)[:, :, queries]
    with mock.patch.object(exact, "BLOCK_BYTES", block):
        check(Rows(queries), call, expected)
        check(Rows(queries.tolist(), heads=heads), call, expected[:, heads])


@examples
@given(calls, blocks, st.integers(1, 20), st.integers(0, 99))
def test_group_mass(sizes, block, groups, seed):
    call = make_call(**sizes)
    group = labels(call.key.shape[2], groups, seed)
    expected = oracle(call) @ sums(group, groups)
    names = tuple("abcdefghijklmnopqrstuvwxyz"[:groups])
    with mock.patch.object(exact, "BLOCK_BYTES", block):
        check(GroupMass(group, names), call, expected, names)
        check(GroupMass(group, names, heads=[-1 % call.query.shape[1]]), call, expected[:, -1:])


@pytest.mark.parametrize("keys", [6, 7, 8, 14, 15, 40])
def test_more_groups_than_the_kernel_has_columns(keys):
    call = make_call(queries=5, keys=keys, group=2, dim=8)
    check(GroupMass(torch.arange(keys)), call, oracle(call))  # every key a group of its own


@examples
@given(calls, blocks, st.integers(1, 4), st.integers(0, 99))
def test_columns(sizes, block, groups, seed):
    call = make_call(**sizes)
    count = call.query.shape[2]
    groups = min(groups, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    group = (order % groups).where((order < groups) | (order % 3 > 0), -1)  # no group is empty
    share = sums(group, groups)
    expected = (share / share.sum(0)).T @ oracle(call)
    with mock.patch.object(exact, "BLOCK_BYTES", block):
        check(Columns(group), call, expected, tuple(map(str, range(groups))))


@examples
@given(calls, blocks)
def test_sweep(sizes, block):
    call = make_call(**sizes)
    weights = oracle(call)
    with mock.patch.object(exact, "BLOCK_BYTES", block):
        check(
            RowReduce(lambda w, q: torch.stack([w.amax(-1), w[..., 0] * q / 100], -1), 2),
            call,
            torch.stack([weights.amax(-1), weights[..., 0] * torch.arange(call.query.shape[2]) / 100], -1),
        )


@examples
@given(calls, blocks, st.integers(0, 99))
def test_stored_attention(sizes, block, seed):
    call = make_call(**sizes)
    expected = oracle(call)
    g = torch.Generator().manual_seed(seed)
    queries = torch.randint(call.query.shape[2], (4,), generator=g)
    keys = torch.randint(call.key.shape[2], (3,), generator=g)
    measurement = StoreQK(heads=[call.query.shape[1] - 1, 0][: call.query.shape[1]])
    with mock.patch.object(exact, "BLOCK_BYTES", block):
        store = measurement(call)
    expected = expected[:, list(store.heads)]
    assert (store.rows(queries) - expected[:, :, queries]).abs().max() <= 1e-6
    assert (store.columns(keys) - expected[..., keys]).abs().max() <= 1e-6
    assert (store.tile(queries, keys) - expected[:, :, queries][..., keys]).abs().max() <= 1e-6
    assert store.residual <= 1e-5
    kept = (store.query, store.key, store.mask, store.maximum, store.total)
    size = measurement.cost(AttentionShape.of(call)).result_bytes
    assert size == sum(x.nbytes for x in kept if x is not None)
    assert store.query.data_ptr() != call.query.data_ptr()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", ["none", "causal", "bool"])
def test_half_precision_is_recomputed_in_float32(dtype, mask):
    call = make_call(queries=40, keys=40, group=2, dim=16, mask=mask, dtype=dtype)
    group = labels(40, 5, 0)
    expected = oracle(call)
    for measurement, values in (
        (Rows([3, 20]), expected[:, :, [3, 20]]),
        (GroupMass(group), expected @ sums(group, 5)),
        (Columns(torch.zeros(40, dtype=torch.long)), expected.mean(2, keepdim=True)),
    ):
        result = measurement(call)
        assert (result.values - values).abs().max() <= 1e-6
        assert 1e-6 < result.residual < 3e-2  # the kernel's own rounding
    kept = StoreQK()(call)
    assert kept.key.dtype == dtype and (kept.rows([7]) - expected[:, :, [7]]).abs().max() <= 1e-6


def test_autocast_rounds_neither_measurements_nor_stored_attention():
    call = make_call(queries=9, keys=9)
    kept = StoreQK()(call)
    with torch.autocast("cpu", torch.bfloat16):
        for measurement in (Rows([4]), GroupMass(torch.zeros(9, dtype=torch.long)), RowReduce(row_entropy)):
            assert measurement(call).residual <= 1e-5
        assert (kept.tile(None, None) - oracle(call)).abs().max() <= 1e-6


@pytest.mark.parametrize("mask", ["none", "bool"])
def test_the_residual_gives_a_wrong_output_away(mask):
    call = make_call(queries=12, keys=12, group=2, dim=8, mask=mask, seed=1)
    zeros = torch.zeros(12, dtype=torch.long)
    everything = [
        Rows(range(12)),
        GroupMass(zeros),
        Columns(zeros),
        RowReduce(row_entropy),
        StoreQK(),
    ]
    call.output[0, 1, 5, 0] += 0.5
    assert all(measurement(call).residual > 0.03 for measurement in everything)
    call.output[0, 1, 5, 0] = torch.nan
    assert all(math.isnan(measurement(call).residual) for measurement in everything)


def test_what_does_not_fit_is_refused():
    call = make_call(queries=6, keys=7)
    three = torch.tensor([0, 1, 0])
    for bad in (
        lambda: Rows([6])(call),
        lambda: Rows([-1])(call),
        lambda: Rows([0], heads=[1])(call),
        lambda: GroupMass(three)(call),
        lambda: Columns(three)(call),
        lambda: RowReduce(lambda weights, _: weights[0])(call),
        lambda: StoreQK()(call).columns([7]),
        lambda: Rows([]),
        lambda: Rows([0.5]),
        lambda: GroupMass(torch.tensor([0, 2]), ["a", "b"]),
        lambda: GroupMass(torch.tensor([-1, -1])),
        lambda: Columns(torch.tensor([0, 2])),
    ):
        with pytest.raises(ValueError):
            bad()


# --- memory and time -------------------------------------------------------------------------------

# Each measurement in a process of its own, forked from one that has torch loaded. Its peak starts from
# what is resident then, which the child reports as well.
MEASURE = """
import json, os, resource, sys
import torch
from torch.nn import functional as F
from vera_lite.diagnostics import *
from vera_lite.diagnostics import exact

torch.set_num_threads(1)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def measure(queries, keys, heads, kv_heads, dim, dtype, causal, make, **_):
    empty = resident()
    def random(tokens, count):
        return torch.randn(1, tokens, count, dim, dtype=getattr(torch, dtype)).transpose(1, 2)
    q, k, v = random(queries, heads), random(keys, kv_heads), random(keys, kv_heads)
    output = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    call = AttentionCall(CallSite("attn"), q, k, v, None, causal, dim**-0.5, output)
    measurement = eval(make)
    cost = measurement.cost(AttentionShape.of(call))
    before = resident()
    result = measurement(call)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"predicted": cost.result_bytes + cost.transient_bytes, "grown": peak - before,
                      "all": peak - empty, "residual": result.residual}), flush=True)

small = Rows([0])(AttentionCall(CallSite(""), *[torch.ones(1, 1, 8, 8)] * 3, None, False, 1.0,
                                       torch.ones(1, 1, 8, 8)))  # loads what is loaded on first use
for case in json.loads(sys.argv[1]):
    exact.BLOCK_BYTES = case.get("block", exact.BLOCK_BYTES)
    child = os.fork()
    if not child:
        measure(**case)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def measure(cases):
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, json.dumps(cases)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert not run.returncode, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def case(make, queries, keys, heads=1, kv_heads=1, dim=16, dtype="float32", causal=False, **block):
    return {
        "make": make,
        "queries": queries,
        "keys": keys,
        "heads": heads,
        "kv_heads": kv_heads,
        "dim": dim,
        "dtype": dtype,
        "causal": causal,
        **block,
    }


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's memory counters")
def test_peak_memory_is_what_the_cost_says():
    row_entropies = "RowReduce(lambda w, _: torch.special.entr(1 * w).sum(-1, keepdim=True))"
    cases = [
        case("Rows(range(500))", 500, 25000, heads=4, kv_heads=2),
        case("GroupMass(torch.arange(128) % 31)", 300000, 128, heads=4, dim=32),
        case("GroupMass(torch.arange(128) % 21)", 300000, 128, heads=1, dim=64, dtype="bfloat16"),
        case("GroupMass(torch.arange(200) % 99)", 500000, 200, heads=1, dim=12),
        case("Columns(torch.arange(256) % 128)", 256, 100000, heads=2, dim=8),
        case(row_entropies, 400, 50000, block=2**26),
        case(row_entropies, 400, 50000, block=2**26, causal=True),
        case("StoreQK()", 40, 300000, heads=2, kv_heads=2, dim=128),
        case("StoreQK()", 40, 200000, heads=2, kv_heads=1, dim=128, dtype="bfloat16"),
    ]
    for asked, found in zip(cases, measure(cases), strict=True):
        assert found["predicted"] >= 150e6, asked
        assert found["grown"] == pytest.approx(found["predicted"], rel=0.2), asked


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's memory counters")
def test_group_mass_of_a_full_length_head_fits_into_a_gigabyte():
    full = case("GroupMass(torch.arange(32760) // 1560)", 32760, 32760, dim=128)
    (found,) = measure([full])
    assert found["all"] < 1e9 and found["residual"] < 1e-5
