"""RVEDiT trains on toy edits: what a batch holds, and what is minimised and what is only logged."""

from dataclasses import replace

import pytest
import torch
from test_rvedit import SMALL, build

from vera_lite.codecs import PatchCodec
from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.systems.rvedit import frozen_vlm
from vera_lite.toy.edits import render_edits
from vera_lite.training import EditingModule, ToyEditData
from vera_lite.training.fit import fit
from vera_lite.training.toy.layers import SHIPPED_CODEC


def data(batch_size=2, **options) -> ToyEditData:
    edits = ToyEditData(batch_size=batch_size, **options)
    edits.trainer = None
    edits.setup()
    return edits


def test_batches_hold_latents_pixels_and_words():
    batch, edits = data(3).train[2], render_edits(1, range(6, 9))
    codec = PatchCodec.load(SHIPPED_CODEC)
    assert torch.equal(batch["source_video"], edits.source)
    assert torch.equal(batch["target_video"], edits.target)
    torch.testing.assert_close(batch["target"], codec.encode(edits.target))
    torch.testing.assert_close(batch["source"], codec.encode(edits.source))
    assert batch["instruction"] == edits.instruction and batch["target_caption"] == edits.target_caption
    assert batch["step"] == 2


def test_logged_only_terms_are_logged_and_not_minimised(tmp_path):
    backbone = replace(SMALL, in_channels=24, out_channels=24)
    system = build(backbone=backbone, objective=FlowMatching("x_0"), text_tokens=40)
    seen = []
    log = EditingModule._log
    patch = pytest.MonkeyPatch()
    patch.setattr(EditingModule, "_log", lambda self, *a: (seen.append(a), log(self, *a))[1])
    try:
        module = fit(system, ToyEditData(batch_size=2), 2, progress=False)
    finally:
        patch.undo()
    losses = seen[0][1]
    assert set(losses) == {"target", "alignment", "positive_rank"}
    total = module._total(losses)
    assert torch.equal(total, losses["target"] + losses["alignment"])
    assert losses["positive_rank"].min() >= 1
    assert module.system.tokens.queries.grad is not None
    assert not any(p.requires_grad for p in frozen_vlm(None).model.parameters())
