"""Attention by layer is the model's own, and scores a mask as it should."""

import pytest
import torch
from test_vision_language import TEXT, VISION

from vera_lite.conditioning.vision_language import VisionLanguageModel
from vera_lite.diagnostics import attention_by_layer, attention_over_clips
from vera_lite.diagnostics.scores import mask_ratio, similarity_map
from vera_lite.toy.vlm import toy_processor
from vera_lite.training.toy.dialogues import toy_qwen3_vl

PHRASE = "the red ring in the video"


@pytest.fixture(scope="module")
def vlm():
    torch.manual_seed(0)
    return VisionLanguageModel(toy_qwen3_vl(TEXT, VISION), toy_processor())


def test_it_is_what_eager_attention_returns(vlm):
    clip = torch.rand(9, 3, 32, 32)
    seen = attention_by_layer(vlm, clip, PHRASE)
    prompt = vlm.prompt([clip], [PHRASE])
    vlm.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            weights = vlm.model(**prompt.tensors, output_attentions=True).attentions
    finally:
        vlm.model.set_attn_implementation("sdpa")
    words = seen.grid.words(PHRASE)
    assert len(words) == 6 and len(weights) == TEXT["num_hidden_layers"]
    for ours, theirs in zip(seen.attention, weights, strict=True):
        torch.testing.assert_close(ours, theirs[0, :, words].mean(1), rtol=0, atol=1e-6)
    assert seen.to_clip.shape[-1] == 2 * 8 * 8 and seen.residual.max() < 1e-6


def test_similarity_is_of_each_layer_before_the_final_norm(vlm):
    clip = torch.rand(9, 3, 32, 32)
    seen = attention_by_layer(vlm, clip, PHRASE)
    prompt = vlm.prompt([clip], [PHRASE])
    last = []
    hook = vlm.model.model.language_model.norm.register_forward_pre_hook(
        lambda _, inputs: last.append(inputs[0])
    )
    with torch.no_grad():
        vlm.model(**prompt.tensors)
    hook.remove()
    words, video = seen.grid.words(PHRASE), seen.grid.tokens("video")
    for reading, maps in seen.similarity.items():
        expected = similarity_map(last[0][0, words], last[0][0, video], reading)
        assert len(maps) == TEXT["num_hidden_layers"]
        torch.testing.assert_close(maps[-1], expected)


def test_timestamps_of_the_toy_model_are_no_text(vlm):
    grid = attention_by_layer(vlm, torch.rand(9, 3, 32, 32), PHRASE).grid
    stamps = grid.stream("video timestamps")
    assert "".join(stamps.words) == "<0.2seconds><0.8seconds>"
    assert [grid[i].frames for i in stamps.positions[[0, -1]].tolist()] == [(0, 3), (5, 8)]


def test_a_phrase_within_the_text(vlm):
    seen = attention_by_layer(vlm, torch.rand(9, 3, 32, 32), PHRASE, phrase="red ring")
    assert [seen.grid[i].word for i in seen.grid.words("red ring").tolist()] == ["red", "ring"]
    with pytest.raises(ValueError, match="blue ring"):
        attention_by_layer(vlm, torch.rand(9, 3, 32, 32), PHRASE, phrase="blue ring")


def test_the_mask_of_one_token_scores_its_share(vlm):
    clip, mask = torch.rand(9, 3, 32, 32), torch.zeros(9, 1, 32, 32)
    grid = attention_by_layer(vlm, clip, PHRASE).grid
    token = grid.index("video", 8, 13, 21)
    top, left, bottom, right = (int(x) for x in grid[token].box)
    for frame in grid[token].frames:
        mask[frame, :, top:bottom, left:right] = 1

    found = attention_over_clips(vlm, [(clip, mask, PHRASE, 8.0)] * 2)
    assert found.coverage[0].nonzero().numel() == 1
    place = grid.tokens("video").tolist().index(token)
    exact = found.attention[0, :, :, place] / found.attention[0].sum(-1)
    ratio = mask_ratio(found.attention[0], found.coverage[0])
    torch.testing.assert_close(ratio, exact.double(), rtol=0, atol=1e-6)
    assert torch.equal(found.heat, found.attention.mean(2))


def test_bad_input_is_named(vlm):
    clip, mask = torch.rand(9, 3, 32, 32), torch.ones(9, 1, 32, 32)
    wide = (torch.rand(9, 3, 16, 32), torch.ones(9, 1, 16, 32), PHRASE, 8.0)
    with pytest.raises(ValueError, match="size"):
        attention_over_clips(vlm, [(clip, mask, PHRASE, 8.0), wide])
    with pytest.raises(ValueError, match="budget"):
        attention_by_layer(vlm, clip, PHRASE, budget_bytes=1000)
