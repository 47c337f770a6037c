"""The person network against the original that its weights come from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from skimage import data
from skimage.transform import resize

from vera_lite.dataset.person import SIZE, WEIGHTS, person_net, person_probability

ORIGINAL = Path(__file__).with_name("selfie_segmentation_landscape.tflite")


@pytest.fixture(scope="module")
def astronaut():
    """A photograph of a woman before a flag, (1, 3, 288, 512) in [0, 1]."""
    photo = resize(data.astronaut()[:288], (288, 512), anti_aliasing=True)
    return torch.from_numpy(photo).float().permute(2, 0, 1)[None]


def test_it_finds_the_person_before_the_flag(astronaut):
    found = person_probability(astronaut)
    assert found.shape == (1, 1, 288, 512)
    assert found[..., 60:120, 200:250].min() > 0.9  # her face
    assert found[..., :60, :100].max() < 0.1  # the flag beside her


def test_it_equals_the_original_graph(astronaut):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    original = interpreter.Interpreter(str(ORIGINAL))
    original.allocate_tensors()
    noise = np.random.default_rng(0).normal(0.5, 1, (1, *SIZE, 3)).astype(np.float32)
    photo = resize(astronaut[0].permute(1, 2, 0).numpy(), SIZE, anti_aliasing=True)[None].astype(np.float32)
    for picture in (photo, noise):
        original.set_tensor(original.get_input_details()[0]["index"], picture)
        original.invoke()
        wanted = original.get_tensor(original.get_output_details()[0]["index"])[..., 0]
        with torch.inference_mode():
            found = person_net()(torch.from_numpy(picture).permute(0, 3, 1, 2))[:, 0]
        # Sums of a few hundred float32 products in another order, before a steep sigmoid.
        assert found.numpy() == pytest.approx(wanted, abs=2e-4)
    assert wanted.max() > 0.1


def test_the_shipped_weights_are_the_originals():
    pytest.importorskip("ai_edge_litert")
    from extract_person_net import state_dict

    theirs, ours = state_dict(ORIGINAL.read_bytes()), load_file(WEIGHTS)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert sum(w.numel() for w in ours.values()) == 106_401
