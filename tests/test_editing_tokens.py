"""Editing tokens read the right tokens of a vision-language model: the toy one and Qwen2.5-VL's own class."""

import pytest
import torch
from test_vision_language import _tiny_qwen2_5_vl
from torch.testing import assert_close

from vera_lite.conditioning.editing_tokens import Connector, EditingTokens, placeholder_of
from vera_lite.conditioning.vision_language import VisionLanguageModel
from vera_lite.errors import UserError
from vera_lite.toy.vlm import toy_processor

TEXTS = ["remove the red ring", "add a blue square at the top left moving right"]


def tiny_qwen2_5_vl() -> VisionLanguageModel:
    """The class of the paper's model, random and tiny, with the placeholder that its tokenizer has."""
    torch.manual_seed(0)
    processor = toy_processor()
    processor.tokenizer.add_tokens("<|object_ref_start|>", special_tokens=True)
    model, processor = _tiny_qwen2_5_vl(processor)
    # As the released template; Qwen3-VL's processor puts the marks around a video itself.
    processor.chat_template = processor.chat_template.replace(
        "<|video_pad|>", "<|vision_start|><|video_pad|><|vision_end|>"
    )
    model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    return VisionLanguageModel(model, processor)


@pytest.fixture(scope="module", params=["toy", "qwen2_5_vl"])
def vlm(request):
    model = VisionLanguageModel.from_pretrained() if request.param == "toy" else tiny_qwen2_5_vl()
    model.model.requires_grad_(False)
    return model


def tokens(vlm, **options) -> EditingTokens:
    torch.manual_seed(0)
    options = {"tokens": 6, "text_tokens": 12} | options
    reader = EditingTokens(vlm.model.config.text_config.hidden_size, 16, **options)
    for connector in (reader.connector, reader.native_connector):
        torch.nn.init.normal_(connector[2].weight, std=0.1)
    return reader


def clips(count=2):
    return list(torch.rand(count, 9, 3, 32, 32, generator=torch.Generator().manual_seed(1)))


def whole_pass(vlm, reader, prompt):
    """The oracle: all tokens at once, queries put in by a hook; the last hidden layer (B, L, D)."""
    places = prompt["input_ids"] == vlm.processor.tokenizer.convert_tokens_to_ids(placeholder_of(vlm))
    places &= prompt["attention_mask"].bool()

    def put(_module, _inputs, embedded):
        return embedded.masked_scatter(places[..., None], reader.queries.repeat(len(places), 1).to(embedded))

    hook = vlm.model.get_input_embeddings().register_forward_hook(put)
    hidden = vlm.model.model(**prompt, use_cache=False).last_hidden_state
    hook.remove()
    return hidden, places


def test_clips_of_unequal_size_are_padded(vlm):
    reader = tokens(vlm)
    large, small = clips()[0], clips()[1][:, :, :16, :16]
    both = reader(vlm, reader.prompt(vlm, [large, small], TEXTS))
    for row, clip in enumerate((large, small)):
        alone = reader(vlm, reader.prompt(vlm, [clip], TEXTS[row : row + 1]))
        length = alone.video.shape[1]
        assert_close(both.video[row, :length], alone.video[0], rtol=1e-3, atol=1e-4)
        assert not both.video[row, length:].any()
        assert_close(both.editing[row], alone.editing[0], rtol=1e-3, atol=1e-4)
    assert both.video.shape[1] > length


def test_an_untrained_connector_says_nothing():
    assert not Connector(8, 4)(torch.randn(3, 8)).any()


def test_a_placeholder_is_the_released_one_where_there_is_one(vlm):
    toy = type(vlm.model).__name__ == "Qwen3VLForConditionalGeneration"
    assert placeholder_of(vlm) == ("<|endoftext|>" if toy else "<|object_ref_start|>")


@pytest.mark.parametrize("fps", [8.0, 0.5])  # at 0.5, Qwen2.5-VL's clip lasts beyond the words after it
@pytest.mark.parametrize("read", ["queries", "last"])
def test_reading_in_two_parts_equals_one_whole_pass(vlm, read, fps):
    reader = tokens(vlm, read=read)
    prompt = reader.prompt(vlm, clips(), TEXTS, fps)
    assert not prompt["attention_mask"][0, 0] and prompt["attention_mask"][1].all()  # padded on the left
    context = reader(vlm, prompt)
    hidden, places = whole_pass(vlm, reader, prompt)
    where = places
    if read == "last":  # one closing token in the toy's template: the first query is missed
        where = torch.zeros_like(places)
        where[:, -reader.tokens :] = True
        assert (where & ~places).sum() == len(TEXTS)
    expected = reader.connector(hidden[where].view(2, 6, -1))
    assert_close(context.editing, expected, rtol=1e-3, atol=1e-4)

    context.editing.square().sum().backward()
    gradient, reader.queries.grad = reader.queries.grad, None
    expected.square().sum().backward()
    assert_close(gradient, reader.queries.grad, rtol=1e-3, atol=1e-4)


def test_native_tokens_are_the_videos_and_the_instructions(vlm):
    reader = tokens(vlm)
    prompt = reader.prompt(vlm, clips(), TEXTS)
    context = reader(vlm, prompt)
    hidden, _ = whole_pass(vlm, reader, prompt)
    words = vlm.processor.tokenizer.convert_ids_to_tokens
    for row, text in enumerate(TEXTS):
        names = words(prompt["input_ids"][row].tolist())
        pads = [i for i, name in enumerate(names) if name == "<|video_pad|>"]
        expected = reader.native_connector(hidden[row])
        assert_close(context.video[row], expected[pads], rtol=1e-3, atol=1e-4)
        start = names.index(text.split()[0])
        count = len(text.split())
        assert names[start : start + count] == text.split()
        assert_close(context.text[row, :count], expected[start : start + count], rtol=1e-3, atol=1e-4)
        assert not context.text[row, count:].any()


def test_a_row_does_not_depend_on_its_neighbours(vlm):
    reader = tokens(vlm)
    both = reader(vlm, reader.prompt(vlm, clips(), TEXTS))
    alone = reader(vlm, reader.prompt(vlm, clips()[:1], TEXTS[:1]))
    for a, b in zip(both, alone, strict=True):
        assert_close(a[:1], b, rtol=1e-3, atol=1e-4)


def test_queries_see_the_instruction_and_the_video(vlm):
    reader = tokens(vlm)
    video = clips()
    plain = reader(vlm, reader.prompt(vlm, video, TEXTS)).editing
    other = reader(vlm, reader.prompt(vlm, video, ["remove the green ring", TEXTS[1]])).editing
    assert (plain[0] - other[0]).abs().max() > 1e-3
    assert_close(plain[1], other[1], rtol=1e-3, atol=1e-4)
    other = reader(vlm, reader.prompt(vlm, [video[0], 1 - video[1]], TEXTS)).editing
    assert (plain[1] - other[1]).abs().max() > 1e-3


def test_a_frozen_model_gets_no_gradient_and_a_trainable_one_does(vlm):
    reader = tokens(vlm)
    prompt = reader.prompt(vlm, clips(), TEXTS)
    reader(vlm, prompt).text.sum().backward()
    assert all(p.grad is None for p in vlm.model.parameters())
    weight = vlm.model.model.language_model.layers[0].self_attn.q_proj.weight
    try:
        weight.requires_grad_(True)
        reader(vlm, prompt).text.sum().backward()
        assert weight.grad.abs().max() > 0
    finally:
        weight.requires_grad_(False)
        weight.grad = None


def test_what_does_not_fit_is_said_in_one_sentence(vlm):
    reader = tokens(vlm, text_tokens=3)
    with pytest.raises(UserError, match="10 tokens"):
        reader(vlm, reader.prompt(vlm, clips(), TEXTS))
    with pytest.raises(UserError, match="4"):
        tokens(vlm, tokens=4)(vlm, reader.prompt(vlm, clips(), TEXTS))
    with pytest.raises(UserError, match="rong"):
        reader.prompt(vlm, clips(), ["remove the rong", TEXTS[1]])
