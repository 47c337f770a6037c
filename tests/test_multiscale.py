"""Reading chosen layers of a frozen vision-language model, and fusing them (MiVE's Eq. 3-5)."""

import re
import weakref

import pytest
import torch
from test_vision_language import TEXT, VISION, _tiny_qwen2_5_vl
from torch.testing import assert_close

from vera_lite.conditioning import multiscale
from vera_lite.conditioning.multiscale import MultiscaleContext, hidden_states, read
from vera_lite.conditioning.vision_language import VisionLanguageModel, chat
from vera_lite.toy.vlm import toy_processor
from vera_lite.training.toy.dialogues import toy_qwen3_vl

TEXTS = ["remove the red ring", "add a blue square at the top left moving right"]


@pytest.fixture(scope="module", params=["toy", "qwen3_vl", "qwen2_5_vl"])
def vlm(request):
    """The toy model, and tiny random ones of two released classes."""
    torch.manual_seed(0)
    if request.param == "toy":
        return VisionLanguageModel.from_pretrained()
    if request.param == "qwen2_5_vl":
        return VisionLanguageModel(*_tiny_qwen2_5_vl(toy_processor()))
    return VisionLanguageModel(toy_qwen3_vl(TEXT, VISION), toy_processor())


@pytest.fixture(scope="module")
def toy():
    return VisionLanguageModel.from_pretrained()


def clips(count=2):
    generator = torch.Generator().manual_seed(1)
    videos = torch.rand(count, 9, 3, 32, 32, generator=generator)
    return list(videos), list(torch.rand(count, 3, 32, 32, generator=generator))


def prompt_of(vlm, texts=TEXTS):
    videos, images = clips(len(texts))
    return chat(vlm.processor, videos, [[(t, None)] for t in texts], images, to_be_answered=False).tensors


# ---------------------------------------------------------------------- layers


def test_layers_are_those_that_transformers_counts(vlm):
    prompt = prompt_of(vlm)
    with torch.no_grad():
        theirs = vlm.model.model(**prompt, output_hidden_states=True, use_cache=False).hidden_states
    numbers = [0, 1, len(theirs) - 1, -1, -2, 1]
    for number, ours in zip(numbers, hidden_states(vlm, numbers, prompt), strict=True):
        assert torch.equal(ours, theirs[number]) and not ours.requires_grad


def test_only_the_chosen_layers_are_kept(toy):
    layers, alive, seen = toy.model.model.language_model.layers, [], []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: seen.append(weakref.ref(out))) for layer in layers
    ]

    def count(*_):
        alive.append(sum(ref() is not None for ref in seen))

    hooks.append(layers[-1].register_forward_pre_hook(count))
    prompt = prompt_of(toy)
    for chosen in ((1, -1), (1, 2, 3, -1)):
        seen.clear()
        hidden_states(toy, chosen, prompt)
    for hook in hooks:
        hook.remove()
    early = [1, 3]  # of the chosen ones, those that are over by then
    assert [n - 1 for n in alive] == early  # and the input of the last layer
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


def test_a_layer_that_is_not_there_is_refused_and_leaves_no_hook(toy):
    with pytest.raises(ValueError, match="9"):
        hidden_states(toy, (1, 9), {})
    with pytest.raises(ValueError, match="input_ids"):
        hidden_states(toy, (0, 1, -1), {"no_such_input": 1})
    tower = toy.model.model.language_model
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (tower.norm, *tower.layers))


# ---------------------------------------------------------------------- readings


def test_a_reading_says_what_is_words_and_what_is_pixels(vlm):
    videos, images = clips()
    reading = read(vlm, videos, TEXTS, images)
    assert [h.shape[:2] for h in reading.layers] == [reading.text.shape] * 2
    assert not (reading.text & reading.visual).any()
    (visual,) = set(reading.visual.sum(1).tolist())
    lengths = (reading.text | reading.visual).sum(1)
    tokens = [len(vlm.processor.tokenizer(t)["input_ids"]) for t in TEXTS]
    assert lengths[1] - lengths[0] == tokens[1] - tokens[0] and lengths.max() == reading.text.shape[1]
    only_video = prompt_of(vlm)["input_ids"] == vlm.model.config.video_token_id
    assert visual > only_video[0].sum() > 0  # the reference image too
    # Padding stands at the end.
    given = reading.text | reading.visual
    assert all(row[:n].all() and not row[n:].any() for row, n in zip(given, lengths, strict=True))


def test_rows_of_a_padded_batch_read_as_alone(vlm):
    videos, images = clips()
    together = read(vlm, videos, TEXTS, images)
    for i in range(2):
        alone = read(vlm, videos[i : i + 1], TEXTS[i : i + 1], images[i : i + 1])
        length = alone.text.shape[1]
        assert torch.equal(together.text[i, :length], alone.text[0])
        assert torch.equal(together.visual[i, :length], alone.visual[0])
        for a, b in zip(alone.layers, together.layers, strict=True):
            assert_close(b[i, :length], a[0], rtol=1e-3, atol=1e-3 * float(a.abs().max()))


def test_video_image_and_words_are_read_together(toy):
    """All in one prompt: what comes later has seen what came before it."""
    videos, images = clips(1)
    base = read(toy, videos, TEXTS[:1], images).layers[1]
    for other in (
        read(toy, [1 - videos[0]], TEXTS[:1], images),
        read(toy, videos, TEXTS[:1], [1 - images[0]]),
        read(toy, videos, ["remove the blue ring"], images),
    ):
        assert (other.layers[1][0, -1] - base[0, -1]).abs().max() > 1e-2  # the closing token


def test_frames_shown_are_spread_over_the_clip(toy):
    videos, images = clips(1)
    two = read(toy, videos, TEXTS[:1], images, frames=2)
    # The two frames alone, at the rate at which they come.
    only_those = read(toy, [videos[0][[0, 8]]], TEXTS[:1], images, frames=2, fps=1.0)
    four = read(toy, videos, TEXTS[:1], images, frames=4)
    assert all(torch.equal(a, b) for a, b in zip(two.layers, only_those.layers, strict=True))
    assert (two.visual.sum(), four.visual.sum()) == (64 + 64, 64 + 128)


@pytest.mark.parametrize("frames", [4, None])
def test_frames_shown_carry_their_own_times(toy, monkeypatch, frames):
    """The case of Qwen3-VL's own bug: 4 of 33 frames at 8 per second are seen at 0.7 and 3.3 s, in pairs."""
    clip, seen = torch.rand(33, 3, 32, 32), []
    decode, real = toy.processor.tokenizer.decode, multiscale.chat

    def chat(*args, **options):
        prompt = real(*args, **options)
        seen.append(decode(prompt.tensors["input_ids"][0]))
        return prompt

    monkeypatch.setattr(multiscale, "chat", chat)
    read(toy, [clip], TEXTS[:1], [clip[0]], frames=frames)
    read(toy, [clip], TEXTS[:1], [clip[0]], frames=frames, fps=4.0)
    assert [re.findall(r"(\d) ?\. ?(\d) seconds", text) for text in seen] == [
        [("0", "7"), ("3", "3")],
        [("1", "4"), ("6", "6")],
    ]


# ---------------------------------------------------------------------- Eq. 3-5


def test_equations_3_to_5_by_hand():
    torch.manual_seed(0)
    context = MultiscaleContext(6, 8, 2)
    for parameter in context.parameters():
        torch.nn.init.normal_(parameter)
    phi = torch.randn(2, 3, 5, 6)  # two layers, B = 3, N_c = 5
    parts = []
    for layer in range(2):
        x = phi[layer] / (phi[layer].square().mean(-1, keepdim=True) + 1e-6).sqrt()
        x = x * context.norms[layer].weight
        parts.append(x @ context.projections[layer].weight.T + context.projections[layer].bias)
    assert parts[0].shape == (3, 5, 4)  # D / 2
    expected = torch.cat(parts, -1) @ context.fusion.weight.T + context.fusion.bias
    assert_close(context(list(phi)), expected)


def test_layers_that_do_not_divide_the_width_are_refused():
    for layers in (0, 3):
        with pytest.raises(ValueError, match=f"{layers} layers"):
            MultiscaleContext(6, 8, layers)
