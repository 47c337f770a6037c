"""RVEDiT trains on toy edits: what a batch holds, and what is minimised and what only watched."""

import pytest
import torch

from vera_lite.backbone import WanConfig
from vera_lite.codecs import PatchCodec
from vera_lite.objectives import FlowMatching
from vera_lite.systems import RVEDiT, RVEDiTConfig
from vera_lite.systems.rvedit import frozen_vlm
from vera_lite.toy_edits import render_edits
from vera_lite.training import EditingModule, ToyEditData
from vera_lite.training.data import SHIPPED_CODEC
from vera_lite.training.fit import fit


def data(batch_size=2, **options) -> ToyEditData:
    edits = ToyEditData(batch_size=batch_size, **options)
    edits.trainer = None
    edits.setup()
    return edits


def test_batches_hold_latents_pixels_and_words():
    batch, edits = data(3).train[2], render_edits(1, range(6, 9))
    codec = PatchCodec.load(SHIPPED_CODEC)
    assert torch.equal(batch["source_video"], edits.source)
    assert torch.equal(batch["composite_video"], edits.target)
    torch.testing.assert_close(batch["composite"], codec.encode(edits.target))
    torch.testing.assert_close(batch["source"], codec.encode(edits.source))
    assert batch["instruction"] == edits.instruction and batch["answer"] == edits.answer
    assert batch["step"] == 2


def test_watched_terms_are_logged_and_not_minimised(tmp_path):
    torch.manual_seed(0)
    backbone = WanConfig(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=24,
        out_channels=24,
        text_dim=None,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    )
    width = frozen_vlm(None).model.config.text_config.hidden_size
    config = RVEDiTConfig(
        backbone, FlowMatching("x_0"), vlm_dim=width, editing_tokens=4, text_tokens=16, routed_layers=1
    )
    seen = []
    log = EditingModule._log
    patch = pytest.MonkeyPatch()
    patch.setattr(EditingModule, "_log", lambda self, *a: (seen.append(a), log(self, *a))[1])
    try:
        module = fit(RVEDiT(config), ToyEditData(batch_size=2), 2, progress=False)
    finally:
        patch.undo()
    losses = seen[0][1]
    assert set(losses) == {"composite", "alignment", "positive_rank"}
    total = module._total(losses)
    assert torch.equal(total, losses["composite"] + losses["alignment"])
    assert losses["positive_rank"].min() >= 1
    assert module.system.tokens.queries.grad is not None
    assert not any(p.requires_grad for p in frozen_vlm(None).model.parameters())
