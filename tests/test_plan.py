"""The capture plan: prices before the run, refusals, and what it captures under a tap."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vera_lite.backbone import WAN_1_3B, WAN_14B, WanConfig, WanTransformer
from vera_lite.diagnostics import (
    AttentionCall,
    AttentionShape,
    CallSite,
    CapturePlan,
    Entry,
    GroupMass,
    RowReduce,
    Rows,
    StoreQK,
    Tap,
    attention_shapes,
    entropy,
)

GB = 10**9


def wan(config, tokens, keys, kind, steps=1):
    """Shapes of one kind of attention in every layer of a real Wan, bfloat16."""
    heads, dim = config.num_attention_heads, config.attention_head_dim
    shape = AttentionShape("", 1, heads, heads, tokens, keys, dim, dim, itemsize=2)
    return [
        replace(shape, module=f"blocks.{layer}.{kind}", step=step)
        for step in range(steps)
        for layer in range(config.num_layers)
    ]


# Wan 14B at 720p and 1.3B at 480p, 81 frames: 21 x 45 x 80 and 21 x 30 x 52 tokens.
BIG = wan(WAN_14B, 75600, 75600, "attn1")
SMALL = wan(WAN_1_3B, 32760, 32760, "attn1")


@pytest.mark.parametrize(
    "shapes, layer_flops, whole_matrix, query_and_key, row_numbers, padded_output",
    [
        (BIG, 1.17e14, 457e9, 1.55e9, 12e6, 0.77e9),
        (SMALL, 6.6e12, 25.8e9, 0.20e9, 1.6e6, 0.10e9),
    ],
    ids=["14B-720p", "1.3B-480p"],
)
def test_sizes_of_real_models(shapes, layer_flops, whole_matrix, query_and_key, row_numbers, padded_output):
    # Expected values by hand, from the models' papers; 14B: 40 heads of 128.
    one = [shapes[0]]
    tokens = one[0].queries

    def total(measurement):
        return CapturePlan([Entry("attn1", measurement)], 10**15).estimate(one).total

    assert one[0].flops == pytest.approx(layer_flops, rel=0.01)
    # All rows of all heads in float32: twice the bfloat16 matrix.
    assert total(Rows(range(tokens))).stored_bytes == pytest.approx(2 * whole_matrix, rel=0.01)
    # Two numbers a row: the maximum and the total that make up the logsumexp.
    stored = query_and_key + 2 * row_numbers
    assert total(StoreQK()).stored_bytes == pytest.approx(stored, rel=0.02)
    # Per head, in float32: copies of Q and K, one-hot columns and output, padded to d; and one more output.
    frames = torch.arange(tokens) // (tokens // 21)
    transient = total(GroupMass(frames)).transient_bytes
    assert transient * one[0].heads == pytest.approx(8 * padded_output + 2 * padded_output, rel=0.2)


def test_a_whole_run_is_priced_by_step():
    groups = torch.arange(75600) % 2
    shapes = wan(WAN_14B, 75600, 75600, "attn1", steps=50)
    plan = CapturePlan(
        [
            Entry("attn1", GroupMass(groups, heads=[3]), "groups"),
            Entry(r"blocks\.(0|39)\.", Rows([5]), "rows", steps=range(0, 50, 25)),
        ],
        2 * GB,
    )
    groups, rows = plan.check(shapes).entries
    # 75,600 queries x 2 groups x 4 bytes, 40 layers, 50 steps.
    assert (groups.calls, groups.stored_bytes) == (2000, 2000 * 604_800)
    assert (rows.calls, rows.stored_bytes) == (4, 4 * 40 * 75600 * 4)


def test_the_table_and_the_refusal():
    words = GroupMass(torch.arange(512) % 12)
    shapes = SMALL + wan(WAN_1_3B, 32760, 512, "attn2")
    entries = [
        Entry("attn2$", words, "words"),
        (r"\.5\.attn1", StoreQK()),
        Entry(r"\.5\.attn1", Rows([0]), "row"),
    ]
    plan = CapturePlan(entries, GB)
    estimate = plan.estimate(shapes)
    header, first, second, third, total, peak = str(estimate).splitlines()
    assert header.split() == ["calls", "stored", "transient", "FLOPs", "of", "attention"]
    # 30 layers x 12 heads x 32760 queries x 12 words x 4 bytes.
    assert first.split()[:4] == ["words", "30", "566", "MB"]
    assert second.split()[:4] == [r"\.5\.attn1", "1", "204", "MB"]
    assert third.split()[:4] == ["row", "1", "1.57", "MB"]
    assert total.split()[:4] == ["total", "32", "772", "MB"]
    assert float(total.split()[-1].rstrip("%")) == pytest.approx(
        4.8, abs=0.11
    )  # 1 of 30 layers, and 30 x 512 of 32760 keys
    assert peak == "predicted peak 821 MB of a budget of 1 GB"
    assert plan.check(shapes).peak_bytes == estimate.peak_bytes
    with pytest.raises(ValueError, match="821 MB.*800 MB.*'words'"):
        CapturePlan(plan.entries, 800 * 10**6).check(shapes)


class Tiny(nn.Module):
    """Two layers, each with a self-attention of 6 tokens and a cross-attention to 4."""

    class Layer(nn.Module):
        class Attention(nn.Module):
            def forward(self, x, memory):
                return F.scaled_dot_product_attention(x, memory, memory)

        def __init__(self):
            super().__init__()
            self.attn1, self.attn2 = self.Attention(), self.Attention()

        def forward(self, x, text):
            x = x + self.attn1(x, x)
            return x + self.attn2(x, text)

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(self.Layer() for _ in range(2))

    def forward(self, x, text):
        for block in self.blocks:
            x = block(x, text)
        return x


@pytest.fixture
def tiny():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 6, 8, generator=generator)
    text = torch.randn(1, 2, 4, 8, generator=generator)
    model = Tiny()

    def run(steps=3):
        return [model(x, text) for _ in range(steps)]

    return model, run


def test_a_plan_captures_what_it_names(tiny):
    model, run = tiny
    plan = CapturePlan(
        [
            Entry("attn2$", GroupMass(torch.tensor([0, 1, 1, -1]), ["a", "b"]), "words"),
            Entry("attn1$", RowReduce(lambda w, _: entropy(w)[..., None]), "entropy", steps=[0, 2]),
            Entry("blocks.1.attn1", StoreQK(), steps=[1]),
        ],
        GB,
    )
    before = run()
    estimate = plan.check(attention_shapes(model, run))
    with Tap(model, plan):
        after = run()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    sites = {name: [(c.site.module, c.site.step) for c in found] for name, found in plan.captures.items()}
    assert sites["words"] == [(f"blocks.{i}.attn2", step) for step in range(3) for i in range(2)]
    assert sites["entropy"] == [(f"blocks.{i}.attn1", step) for step in (0, 2) for i in range(2)]
    assert sites["blocks.1.attn1"] == [("blocks.1.attn1", 1)]
    assert all(c.residual < 1e-5 for found in plan.captures.values() for c in found)
    assert plan.stored_bytes == estimate.total.stored_bytes
    assert [e.calls for e in estimate.entries] == [len(found) for found in plan.captures.values()]


def test_a_run_over_budget_stops_before_it_measures(tiny):
    model, run = tiny
    measured = []

    class Spy(Rows):
        def _measure(self, call, heads):
            measured.append(call.site)
            return super()._measure(call, heads)

    measurement = Spy(range(6))
    shapes = attention_shapes(model, lambda: run(1))
    cost = measurement.cost(shapes[0])
    plan = CapturePlan([Entry("attn1", measurement)], 2 * cost.result_bytes + cost.transient_bytes)
    with (
        pytest.raises(ValueError, match=r"blocks\.0\.attn1, step 1"),
        Tap(model, plan),
    ):
        run()
    assert len(measured) == len(plan.captures["attn1"]) == 2


def test_what_does_not_fit_is_refused(tiny):
    model, run = tiny
    shapes = attention_shapes(model, lambda: run(1))
    narrow = CapturePlan([Entry("attn", GroupMass(torch.zeros(4).long()), "words")], GB)
    named = "'words'"
    with pytest.raises(ValueError, match=named):
        narrow.estimate(shapes)
    with pytest.raises(ValueError, match=named), Tap(model, narrow):
        run()
    for entries in ([], [("a", Rows([0])), ("a", Rows([1]))]):
        with pytest.raises(ValueError, match="entries"):
            CapturePlan(entries, GB)
    for entry in (Entry("attn3", Rows([0])), Entry("attn1", Rows([0]), steps=[7])):
        with pytest.raises(ValueError, match=entry.where):
            CapturePlan([entry], GB).estimate(shapes)


def test_an_entry_that_captures_nothing_is_warned_of(tiny):
    model, run = tiny
    plan = CapturePlan([("attn1", Rows([0])), ("atn2", Rows([0]), "typo")], GB)
    with pytest.warns(UserWarning, match=r"'typo'.*blocks\.0\.attn1"):  # noqa: SIM117
        with Tap(model, plan):
            run()
    assert plan.unmatched == ["typo"]


def test_shapes_of_a_model_on_the_meta_device():
    config = WanConfig(num_attention_heads=3, attention_head_dim=12, text_dim=8, ffn_dim=8, num_layers=2)
    with torch.device("meta"), torch.no_grad():
        model = WanTransformer(config)
        inputs = torch.zeros(1, 16, 3, 4, 6), torch.zeros(1), torch.zeros(1, 5, 8)
        shapes = attention_shapes(model, lambda: model(*inputs))
    assert [s.module for s in shapes] == [f"blocks.{i}.attn{j}" for i in range(2) for j in (1, 2)]
    assert shapes[0] == AttentionShape("blocks.0.attn1", 1, 3, 3, 18, 18, 12, 12)
    assert (shapes[1].queries, shapes[1].keys) == (18, 5)


def test_the_shape_of_a_call_knows_its_mask():
    query = torch.zeros(2, 4, 6, 8, dtype=torch.bfloat16)
    key, value = torch.zeros(2, 2, 5, 8), torch.zeros(2, 2, 5, 3)
    mask = torch.ones(2, 1, 1, 5).bool().expand(2, 4, 6, 5)
    call = AttentionCall(CallSite("m", 0, 7), query, key, value, mask, False, 1.0, query[..., :3])
    assert AttentionShape.of(call) == AttentionShape("m", 2, 4, 2, 6, 5, 8, 3, 2, 10, False, 7)


PEAK = """
import json, re, torch
from torch import nn
from torch.nn import functional as F
from vera_lite.diagnostics import CapturePlan, Rows, Tap, attention_shapes

class SelfAttention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)

def memory(what):  # of this program alone: what getrusage says may be the peak of its parent
    return int(re.search(what + ":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

model = nn.Sequential(*(SelfAttention() for _ in range(3)))
x = torch.randn(1, 4, 6000, 16)
plan = CapturePlan([("", Rows(range(700)), "rows")], 10**9)
with torch.no_grad():
    predicted = plan.check(attention_shapes(model, lambda: model(x))).peak_bytes  # a plain run: warm
    with Tap(model, CapturePlan([("", Rows([0]), "warm")], 10**9)):
        model(x)
    before = memory("VmRSS")
    with Tap(model, plan):
        model(x)
print(json.dumps([predicted, memory("VmHWM") - before]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's memory counters")
def test_the_peak_of_a_whole_plan_is_what_it_said():
    """Captures of several layers under a tap, where they and not the model make the peak."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PEAK], capture_output=True, text=True, check=True
    )
    predicted, grown = json.loads(run.stdout)
    assert predicted > 150e6 and grown == pytest.approx(predicted, rel=0.2)
