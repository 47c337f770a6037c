"""Two real clips through the shipped stages: a dog becomes a layer, a juggler gets another background.

The clips are the SAM 2 repository's (facebookresearch/sam2, demo/data/gallery, Apache-2.0) and do not ship:
put 01_dog.mp4 and 05_default_juggle.mp4 into a folder and name it in VERA_LITE_CLIPS.
"""

import os
from pathlib import Path

import pytest
import torch
from test_stages import VERA, given, run

from vera_lite.dataset.stage import LAYERS, Ok, Reject
from vera_lite.dataset.stages import load
from vera_lite.media.clip import composite

CLIPS = Path(os.environ.get("VERA_LITE_CLIPS", "nowhere"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CLIPS / "01_dog.mp4").is_file(), reason="VERA_LITE_CLIPS names no clips"),
]


def layers_of(outcome):
    assert isinstance(outcome, Ok), outcome
    return dict(zip(LAYERS, load(lambda name: outcome.sample.files[name], *LAYERS), strict=True))


def recomposition(found):
    error = composite(found["edit"], found["alpha"], found["source"]) - found["composite"]
    return float(-10 * error.square().mean().log10())


def test_the_dog_becomes_a_layer_with_its_shadow(tmp_path):
    """It runs about before a woman, who stays in the plate."""
    facts = {"seconds": [6.2, 8.8], "subject": "moving:530,200,750,519", "label": "a brown and white dog"}
    outcome = run(VERA, given(CLIPS / "01_dog.mp4", **facts), tmp_path)
    found = layers_of(outcome)
    assert outcome.sample.facts["shadow"] > 0
    assert outcome.sample.facts["unseen"] < 0.01
    assert recomposition(found) > 36
    woman = (..., slice(40, 190), slice(40, 100))
    assert torch.equal(found["source"][woman], found["composite"][woman])
    assert 0.005 < found["mask"].mean() < 0.06


def test_the_juggler_gets_another_background_and_no_plate(tmp_path):
    clip = CLIPS / "05_default_juggle.mp4"
    found = layers_of(run(VERA, given(clip, "background_change"), tmp_path))
    assert recomposition(found) > 35
    assert (found["source"] - found["composite"])[:, :, :, :100].abs().mean() > 0.05
    (tmp_path / "again").mkdir()
    outcome = run(VERA, given(clip, "object_addition", subject="person"), tmp_path / "again")
    assert isinstance(outcome, Reject)
    assert outcome.reason == "unseen_background"
    assert outcome.facts["unseen"] > 0.2
