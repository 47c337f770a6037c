"""Every probe against a dense float64 softmax, over random masks, grouped heads and ragged blocks."""

import json
import math
import os
import subprocess
import sys
import time
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vera_lite.diagnostics import probes
from vera_lite.diagnostics.call import AttentionCall, Site
from vera_lite.diagnostics.probes import (
    AttentionShape,
    AttentionStore,
    Columns,
    GroupMass,
    RandomAccess,
    Rows,
    SampledRows,
    Sweep,
    row_entropy,
)
from vera_lite.errors import UserError

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
    return AttentionCall(Site("blocks.0.attn1"), query, key, value, attn_mask, is_causal, scale, output)


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


def check(probe, call, expected, names=None):
    """Values, certificate and the promised size; float32 products leave 1e-6."""
    result = probe(call)
    assert (result.values - expected).abs().max() <= 1e-6
    assert result.values.dtype == torch.float32 and result.residual <= 1e-5
    stored = [x for x in (result.values, result.standard_error) if x is not None]
    assert probe.cost(AttentionShape.of(call)).result_bytes == sum(x.nbytes for x in stored)
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
    with mock.patch.object(probes, "BLOCK_BYTES", block):
        check(Rows(queries), call, expected)
        check(Rows(queries.tolist(), heads=heads), call, expected[:, heads])
        check(Rows(queries, mean_over_heads=True), call, expected.mean(1, keepdim=True))


@examples
@given(calls, blocks, st.integers(1, 20), st.integers(0, 99))
def test_group_mass(sizes, block, groups, seed):
    call = make_call(**sizes)
    group = labels(call.key.shape[2], groups, seed)
    expected = oracle(call) @ sums(group, groups)
    names = tuple("abcdefghijklmnopqrstuvwxyz"[:groups])
    with mock.patch.object(probes, "BLOCK_BYTES", block):
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
    with mock.patch.object(probes, "BLOCK_BYTES", block):
        check(Columns(group), call, expected, tuple(map(str, range(groups))))


@examples
@given(calls, blocks)
def test_sweep(sizes, block):
    call = make_call(**sizes)
    weights = oracle(call)
    half = torch.arange(0, call.key.shape[2], 2)
    chosen = weights[..., half] / weights[..., half].sum(-1, keepdim=True)
    with mock.patch.object(probes, "BLOCK_BYTES", block):
        check(
            Sweep(lambda w, q: torch.stack([w.amax(-1), w[..., 0] * q / 100], -1), 2),
            call,
            torch.stack([weights.amax(-1), weights[..., 0] * torch.arange(call.query.shape[2]) / 100], -1),
        )
        result = Sweep(row_entropy(half))(call)
    expected = torch.special.entr(chosen).sum(-1, keepdim=True)
    torch.testing.assert_close(result.values.double(), expected, atol=3e-6, rtol=0, equal_nan=True)


@examples
@given(calls, blocks, st.integers(0, 99))
def test_random_access(sizes, block, seed):
    call = make_call(**sizes)
    expected = oracle(call)
    g = torch.Generator().manual_seed(seed)
    queries = torch.randint(call.query.shape[2], (4,), generator=g)
    keys = torch.randint(call.key.shape[2], (3,), generator=g)
    probe = RandomAccess(heads=[call.query.shape[1] - 1, 0][: call.query.shape[1]])
    with mock.patch.object(probes, "BLOCK_BYTES", block):
        store = probe(call)
    expected = expected[:, list(store.heads)]
    assert (store.rows(queries) - expected[:, :, queries]).abs().max() <= 1e-6
    assert (store.columns(keys) - expected[..., keys]).abs().max() <= 1e-6
    tile = expected[:, :1, queries][..., keys]
    assert (store.tile(queries, keys, store.heads[:1]) - tile).abs().max() <= 1e-6
    assert store.residual <= 1e-5
    kept = (store.query, store.key, store.mask, store.maximum, store.total)
    size = probe.cost(AttentionShape.of(call)).result_bytes
    assert size == sum(x.nbytes for x in kept if x is not None)
    assert store.query.data_ptr() != call.query.data_ptr()


@examples
@given(calls, blocks, st.integers(2, 9), st.integers(0, 99))
def test_sampled_rows(sizes, block, per_stratum, seed):
    call = make_call(**sizes)
    strata = torch.arange(call.query.shape[2]) * 3 // call.query.shape[2]
    strata -= strata.min()
    strata = strata.unique(return_inverse=True)[1]
    group = labels(call.key.shape[2], 3, seed)
    mass = oracle(call) @ sums(group, 3)
    probe = SampledRows(strata, group, per_stratum, names="abc", seed=seed)
    drawn = probe.drawn
    assert all((strata[rows] == s).all() for s, rows in enumerate(drawn))
    with mock.patch.object(probes, "BLOCK_BYTES", block):
        result = check(
            probe, call, torch.stack([mass[:, :, rows].mean(2) for rows in drawn], 2), ("a", "b", "c")
        )
        everything = SampledRows(strata, group, 99, names="abc")(call)
    truth = torch.stack([mass[:, :, strata == s].mean(2) for s in range(len(drawn))], 2)
    assert (everything.values - truth).abs().max() <= 1e-6 and not everything.standard_error.any()
    n, population = len(drawn[0]), (strata == 0).sum()
    if n < population:
        spread = mass[:, :, drawn[0]].var(2) / n * (1 - n / population)
        assert (result.standard_error[:, :, 0] - spread.sqrt()).abs().max() <= 1e-6


def test_intervals_of_sampled_rows_cover_the_truth():
    call = make_call(queries=200, keys=50, dim=8)
    strata = torch.arange(200) // 100
    group = labels(50, 3, 0)
    truth = (oracle(call) @ sums(group, 3)).unflatten(2, (2, 100)).mean(3)
    covered = []
    for seed in range(200):
        result = SampledRows(strata, group, 40, names="abc", seed=seed)(call)
        covered.append((result.values - truth).abs() <= 1.96 * result.standard_error)
    covered = torch.stack(covered).double().mean(0)
    assert covered.min() >= 0.9 and covered.mean() <= 0.98  # nor are the intervals needlessly wide


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", ["none", "causal", "bool"])
def test_half_precision_is_recomputed_in_float32(dtype, mask):
    call = make_call(queries=40, keys=40, group=2, dim=16, mask=mask, dtype=dtype)
    group = labels(40, 5, 0)
    expected = oracle(call)
    for probe, values in (
        (Rows([3, 20]), expected[:, :, [3, 20]]),
        (GroupMass(group), expected @ sums(group, 5)),
        (Columns(torch.zeros(40, dtype=torch.long)), expected.mean(2, keepdim=True)),
    ):
        result = probe(call)
        assert (result.values - values).abs().max() <= 1e-6
        assert 1e-6 < result.residual < 3e-2  # the kernel's own rounding
    fast = GroupMass(group, upcast=False)(call)
    assert (fast.values - expected @ sums(group, 5)).abs().max() <= 1e-2
    store = RandomAccess()(call)
    assert store.key.dtype == dtype and (store.rows([7]) - expected[:, :, [7]]).abs().max() <= 1e-6


def test_autocast_does_not_round_the_probes():
    call = make_call(queries=9, keys=9)
    with torch.autocast("cpu", torch.bfloat16):
        for probe in (Rows([4]), GroupMass(torch.zeros(9, dtype=torch.long)), Sweep(row_entropy())):
            assert probe(call).residual <= 1e-5


@pytest.mark.parametrize("mask", ["none", "bool"])
def test_the_residual_gives_a_wrong_output_away(mask):
    call = make_call(queries=12, keys=12, group=2, dim=8, mask=mask, seed=1)
    zeros = torch.zeros(12, dtype=torch.long)
    probe_list = [
        Rows(range(12)),
        GroupMass(zeros),
        Columns(zeros),
        Sweep(row_entropy()),
        RandomAccess(),
        SampledRows(zeros, zeros, 12),
    ]
    call.output[0, 1, 5, 0] += 0.5
    assert all(probe(call).residual > 0.03 for probe in probe_list)
    call.output[0, 1, 5, 0] = torch.nan
    assert all(math.isnan(probe(call).residual) for probe in probe_list)


def test_saved_attention_comes_back(tmp_path):
    call = make_call(batch=2, kv_heads=2, group=2, mask="bool", dtype=torch.bfloat16)
    store = RandomAccess(heads=[3, 1])(call)
    store.save(tmp_path / "layer.safetensors")
    again = AttentionStore.load(tmp_path / "layer.safetensors")
    assert torch.equal(again.tile(None, None), store.tile(None, None))
    assert (again.site, again.heads, again.residual) == (store.site, store.heads, store.residual)
    assert os.listdir(tmp_path) == ["layer.safetensors"]

    def breaks(tensors, path, metadata):
        path.write_text("half")
        raise KeyboardInterrupt

    with mock.patch.object(probes, "save_file", breaks), pytest.raises(KeyboardInterrupt):
        store.save(tmp_path / "layer.safetensors")
    assert AttentionStore.load(tmp_path / "layer.safetensors").scale == store.scale
    (tmp_path / "other").write_text("no")
    for name in ("other", "missing"):
        with pytest.raises(UserError, match="no saved attention"):
            AttentionStore.load(tmp_path / name)


def test_what_does_not_fit_is_refused_by_name():
    call = make_call(queries=6, keys=7)
    three = torch.tensor([0, 1, 0])
    for probe, message in (
        (Rows([6]), r"blocks\.0\.attn1 has 6 queries"),
        (Rows([-1]), "-1 is none of them"),
        (Rows([0], heads=[1]), "has 1 heads"),
        (GroupMass(three), r"blocks\.0\.attn1 has 7 keys and the probe has labels for 3"),
        (Columns(three), "has 6 queries and the probe has labels for 3"),
        (SampledRows(torch.zeros(6).long(), three, 2), "has 7 keys"),
        (SampledRows(three, torch.zeros(7).long(), 2), "has 6 queries"),
        (Sweep(lambda weights, _: weights[0]), "reduce must return"),
    ):
        with pytest.raises(UserError, match=message):
            probe(call)
    with pytest.raises(UserError, match="ask for some of these"):
        RandomAccess()(call).rows([0], heads=[2])
    with pytest.raises(UserError, match="7 is none of them"):
        RandomAccess()(call).columns([7])
    for bad, message in (
        (lambda: Rows([]), "one or more whole numbers"),
        (lambda: Rows([0.5]), "whole numbers"),
        (lambda: GroupMass(torch.tensor([0, 2]), ["a", "b"]), "run from 0 to 2 with 2 names"),
        (lambda: GroupMass(torch.tensor([-1, -1])), "run from -1 to -1"),
        (lambda: Columns(torch.tensor([0, 2])), "group 1 has no query"),
        (lambda: SampledRows(three, three, 1), "two or more"),
        (lambda: SampledRows(torch.tensor([0, -1, 2]), three, 2), "no query"),
    ):
        with pytest.raises(UserError, match=message):
            bad()


# --- memory and time -------------------------------------------------------------------------------

# Each measurement in a process of its own, forked from one that has torch loaded. Its peak starts from
# what is resident then, which the child reports as well.
MEASURE = """
import json, os, resource, sys, time
import torch
from torch.nn import functional as F
from vera_lite.diagnostics import probes
from vera_lite.diagnostics.call import AttentionCall, Site
from vera_lite.diagnostics.probes import *

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
    call = AttentionCall(Site("attn"), q, k, v, None, causal, dim**-0.5, output)
    probe = eval(make)
    cost = probe.cost(AttentionShape.of(call))
    before, start = resident(), time.perf_counter()
    result = probe(call)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"predicted": cost.result_bytes + cost.transient_bytes, "grown": peak - before,
                      "all": peak - empty, "seconds": seconds, "residual": result.residual}), flush=True)

small = probes.Rows([0])(AttentionCall(Site(""), *[torch.ones(1, 1, 8, 8)] * 3, None, False, 1.0,
                                       torch.ones(1, 1, 8, 8)))  # loads what is loaded on first use
for case in json.loads(sys.argv[1]):
    probes.BLOCK_BYTES = case.get("block", probes.BLOCK_BYTES)
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
    cases = [
        case("Rows(range(500))", 500, 25000, heads=4, kv_heads=2),
        case("Rows(range(2000), mean_over_heads=True)", 2000, 25000, heads=2, dim=8),
        case("GroupMass(torch.arange(128) % 31)", 300000, 128, heads=4, dim=32),
        case("GroupMass(torch.arange(128) % 21)", 300000, 128, heads=1, dim=64, dtype="bfloat16"),
        case("GroupMass(torch.arange(200) % 99)", 500000, 200, heads=1, dim=12),
        case("Columns(torch.arange(256) % 128)", 256, 100000, heads=2, dim=8),
        case("Sweep(row_entropy(torch.arange(50000)))", 400, 50000, block=2**26),
        case("Sweep(row_entropy(torch.arange(50000)))", 400, 50000, block=2**26, causal=True),
        case("RandomAccess()", 40, 300000, heads=2, kv_heads=2, dim=128),
        case("RandomAccess()", 40, 200000, heads=2, kv_heads=1, dim=128, dtype="bfloat16"),
        case("SampledRows(torch.arange(2000) % 4, torch.arange(50000) % 9, 200)", 2000, 50000, block=2**28),
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


def test_a_click_on_a_full_length_layer_is_quick(tmp_path):
    # 1.3B at 480p; the two numbers a row do not change how long a click takes.
    query, key = torch.randn(2, 1, 12, 32760, 128, dtype=torch.bfloat16)
    ones = torch.ones(1, 12, 32760, 1)
    twelve = tuple(range(12))
    store = AttentionStore(Site("a"), twelve, twelve, query, key, None, False, 0.1, ones * 9, ones, 0.0)
    store.save(tmp_path / "layer.safetensors")
    store = AttentionStore.load(tmp_path / "layer.safetensors")
    times = []
    for token in range(4):
        start = time.process_time()  # a busy machine changes it little
        row, column = store.rows([token]), store.columns([token])
        times.append(time.process_time() - start)
    assert row.shape == (1, 12, 1, 32760) and column.shape == (1, 12, 32760, 1)
    assert min(times) < 0.15
