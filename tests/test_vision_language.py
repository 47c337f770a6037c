"""The toy vision-language model: its words, its questions, its training, and the loading of real ones."""

import json

import pytest
import torch

from vera_lite.apps.train import export, train
from vera_lite.conditioning.vision_language import VisionLanguageModel, chat
from vera_lite.errors import UserError
from vera_lite.toy.dialogues import KINDS, ask, describe, talk
from vera_lite.toy.edits import render_edits
from vera_lite.toy.vlm import CELLS, toy_processor, toy_vocabulary
from vera_lite.toy.world import render
from vera_lite.training.toy.dialogues import (
    DIALOGUE_WORLD,
    DialogueBatches,
    toy_qwen3_vl,
)

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]},
}
VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "deepstack_visual_indexes": [0],
}


@pytest.fixture(scope="module")
def processor():
    return toy_processor()


@pytest.fixture(scope="module")
def tiny(processor):
    torch.manual_seed(0)
    return VisionLanguageModel(toy_qwen3_vl(TEXT, VISION), processor)


def test_every_question_and_answer_is_in_the_vocabulary(processor):
    tokenizer = processor.tokenizer
    batch = render(5, range(300), DIALOGUE_WORLD)
    for kind in KINDS:
        for d in ask(batch, kind, 5, range(300)):
            for said in (d.question, d.answer):
                ids = tokenizer(said)["input_ids"]
                assert tokenizer.unk_token_id not in ids, said
                assert tokenizer.decode(ids) == said


def test_answers_are_true():
    """Against the pixels and the mask, not against the attributes the answers were made from."""
    batch = render(6, range(64), DIALOGUE_WORLD)
    for d in ask(batch, "locate", 6, range(64)):
        words = d.answer.split()
        for frame, (x, y) in ((0, words[1:3]), (-1, words[4:6])):
            rows, columns = d.mask[frame, 0].nonzero().float().unbind(1)
            # The mask of a triangle is not centred on its centre: half a cell of slack.
            for seen, cell in ((columns.mean(), x), (rows.mean(), y)):
                assert abs((seen + 0.5) / 32 * CELLS - (int(cell[1:]) + 0.5)) < 1.0
    two = [a for a in batch.attributes if a["other"]]
    assert two and all(describe([a, a["other"]], a["source_background"]).count(" at the ") == 2 for a in two)
    for d, a in zip(ask(batch, "background", 6, range(64)), batch.attributes, strict=True):
        if a["task"] == "background":
            assert a["background_colour"] in d.answer


def test_every_other_batch_is_of_edits_if_wanted():
    processor = toy_processor()
    mixed, plain = DialogueBatches(True, 4, 3), DialogueBatches(False, 4, 3)
    edits = render_edits(3, range(8, 12))
    for row, (order, answer) in enumerate(zip(edits.instruction, edits.target_caption, strict=True)):
        tokens, labels = mixed[2]["input_ids"][row], mixed[2]["labels"][row]
        assert processor.decode(labels[labels != -100], skip_special_tokens=True).strip() == answer
        assert f"{order} <|im_end|>" in processor.decode(tokens)
    assert torch.equal(mixed[3]["input_ids"], plain[3]["input_ids"])
    assert not torch.equal(mixed[2]["pixel_values_videos"], plain[2]["pixel_values_videos"])


def test_a_batch_is_a_function_of_seed_step_and_rank():
    once, again = DialogueBatches(False, 4, 3)[7], DialogueBatches(False, 4, 3)[7]
    assert all(torch.equal(once[k], again[k]) for k in once)
    whole = DialogueBatches(False, 4, 3)[2]
    halves = [DialogueBatches(False, 2, 3, rank, 2)[2] for rank in (0, 1)]
    pixels = torch.cat([h["pixel_values_videos"] for h in halves])
    assert torch.equal(whole["pixel_values_videos"], pixels)
    other = DialogueBatches(False, 4, 4)[7]
    assert not torch.equal(other["pixel_values_videos"], once["pixel_values_videos"])


def test_only_answers_are_learned(processor):
    batches = DialogueBatches(False, 6, 1)
    for step in (0, 11):  # 11 asks about an image
        indices = range(step * 6, step * 6 + 6)
        scenes = render(1, indices, DIALOGUE_WORLD)
        answers = [[answer for _, answer in turns] for turns in talk(scenes, 1, indices)]
        if step == 11:
            answers = [[d.answer] for d in ask(scenes, "compare", 1, indices)]
        batch = batches[step]
        assert ("pixel_values" in batch) == (step == 11)
        for expected, labels in zip(answers, batch["labels"], strict=True):
            said = processor.tokenizer.decode(labels[labels >= 0])
            assert said == " ".join(f"{answer} <|im_end|>" for answer in expected)


def test_a_talk_ends_with_what_gives_everything_away():
    scenes = render(2, range(40), DIALOGUE_WORLD)
    talks = talk(scenes, 2, range(40), turns=4)
    assert talks == talk(scenes, 2, range(40), turns=4)
    for turns in talks:
        assert len(turns) == 4 and turns[-1][0].startswith("describe")
        assert not any(question.startswith("describe") for question, _ in turns[:-1])
        assert len({question for question, _ in turns[:-1]}) >= 2


def test_word_outside_the_vocabulary_is_named(tiny):
    clip = torch.rand(9, 3, 32, 32)
    with pytest.raises(UserError, match="'rin'.*'ring'"):
        tiny.prompt([clip], ["the red rin in the video"])
    with pytest.raises(UserError, match=r"\(T, 3, H, W\)"):
        tiny.prompt([clip[0]], ["the red ring"])


def test_missing_models_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match="config.json"):
        VisionLanguageModel.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="download=True"):
        VisionLanguageModel.from_pretrained("nobody/no-such-model")


def test_rows_of_a_padded_batch_answer_as_alone(tiny):
    clips = [torch.rand(9, 3, 32, 32) for _ in range(2)]
    texts = ["describe the video", "where is the red ring ?"]
    alone = [tiny.answer(tiny.prompt([c], [t]), 6)[0] for c, t in zip(clips, texts, strict=True)]
    assert tiny.answer(tiny.prompt(clips, texts), 6) == alone


def test_large_clips_are_brought_to_the_size_the_model_knows(tiny):
    prompt = tiny.prompt([torch.rand(30, 3, 90, 160)], ["describe the video"])
    t, h, w = prompt.tensors["video_grid_thw"][0].tolist()
    assert t == 2 and h * w <= 256 and w > h
    assert prompt.metadata[0].frames_indices.tolist() == [0, 10, 19, 29]


@pytest.mark.slow
def test_train_resume_export_load(tmp_path):
    """Interrupted and resumed equals uninterrupted, bit for bit; the export loads and answers alike."""
    config = tmp_path / "tiny.yaml"
    model = {"class_path": "vera_lite.training.DialogueModule", "init_args": {"text": TEXT, "vision": VISION}}
    data = {"class_path": "vera_lite.training.ToyDialogues", "init_args": {"batch_size": 2}}
    trainer = {"accelerator": "cpu", "devices": 1, "max_steps": 6, "limit_val_batches": 0, "logger": False}
    checkpoint = "lightning.pytorch.callbacks.ModelCheckpoint"
    config.write_text(json.dumps({"model": model, "data": data, "trainer": trainer}))

    def fit(folder, *more):
        keep = {"dirpath": str(folder), "every_n_train_steps": 3, "save_top_k": -1, "save_last": True}
        callbacks = json.dumps([{"class_path": checkpoint, "init_args": keep}])
        train(
            [
                "fit",
                f"--config={config}",
                f"--trainer.callbacks={callbacks}",
                f"--trainer.default_root_dir={folder}",
                *more,
            ]
        )

    fit(tmp_path / "whole")
    middle = next((tmp_path / "whole").glob("*step=3.ckpt"))
    fit(tmp_path / "resumed", f"--ckpt_path={middle}")
    whole, resumed = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "resumed")
    )
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)

    export(tmp_path / "whole" / "last.ckpt", tmp_path / "model", half=False)
    loaded = VisionLanguageModel.from_pretrained(tmp_path / "model")
    trained = toy_qwen3_vl(TEXT, VISION).eval()
    trained.load_state_dict({k.removeprefix("model."): v for k, v in whole.items()})
    prompt = loaded.prompt([torch.rand(9, 3, 32, 32)], ["describe the video"])
    with torch.no_grad():
        results = (m(**prompt.tensors).logits for m in (loaded.model, trained))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    assert loaded.processor.tokenizer.get_vocab() == toy_vocabulary()


def test_the_processor_survives_saving(processor, tmp_path):
    from transformers import AutoProcessor

    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    clip, image = torch.rand(9, 3, 32, 32), torch.rand(3, 32, 32)
    ours, theirs = (
        chat(p, [clip], [[("what changed ?", None)]], images=[image]) for p in (processor, loaded)
    )
    assert all(torch.equal(ours.tensors[k], theirs.tensors[k]) for k in ours.tensors)


def _tiny_qwen2_5_vl(processor):
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
    )

    words = toy_vocabulary()
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    text = {k: v for k, v in TEXT.items() if k != "head_dim"} | {
        "rope_parameters": rope,
        "vocab_size": len(words),
    }
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 2}
    vision |= {"out_hidden_size": 32, "window_size": 8, "fullatt_block_indexes": [1]}
    tokens = {f"{kind}_token_id": words[f"<|{kind}_pad|>"] for kind in ("image", "video")}
    tokens |= {f"vision_{end}_token_id": words[f"<|vision_{end}|>"] for end in ("start", "end")}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
    small = {"patch_size": 2, "merge_size": 2, "size": {"shortest_edge": 256, "longest_edge": 4096}}
    processor = Qwen2_5_VLProcessor(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        video_processor=Qwen2VLVideoProcessor(**small, num_frames=4, do_sample_frames=True),
        chat_template=processor.chat_template,
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def _tiny_glm(processor):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        Glm46VConfig,
        Glm46VForConditionalGeneration,
        Glm46VImageProcessor,
        Glm46VProcessor,
        Glm46VVideoProcessor,
        PreTrainedTokenizerFast,
    )

    special = [f"<|{mark}_of_{kind}|>" for kind in ("image", "video") for mark in ("begin", "end")]
    special += ["<|image|>", "<|video|>", "<|user|>", "<|assistant|>", "<|pad|>"]
    words = {word: i for i, word in enumerate(dict.fromkeys([*special, *toy_vocabulary()]))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<|unknown|>", pad_token="<|pad|>", extra_special_tokens=special
    )
    text = TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}}
    text = {k: v for k, v in text.items() if k != "head_dim"} | {"vocab_size": len(words), "pad_token_id": 8}
    vision = {k: v for k, v in VISION.items() if not k.startswith("deepstack")}
    vision |= {"patch_size": 2, "out_hidden_size": 32, "image_size": 32}
    tokens = {f"{kind}_token_id": words[f"<|{kind}|>"] for kind in ("image", "video")}
    for kind in ("image", "video"):
        tokens |= {
            f"{kind}_{e}_token_id": words[f"<|{m}_of_{kind}|>"]
            for e, m in (("start", "begin"), ("end", "end"))
        }
    config = Glm46VConfig(text_config=text, vision_config=vision, **tokens)
    small = {"patch_size": 2, "merge_size": 2}
    template = processor.chat_template
    for ours, theirs in {
        "<|vision_start|><|image_pad|><|vision_end|>": "<|begin_of_image|><|image|><|end_of_image|>",
        "<|video_pad|>": "<|begin_of_video|><|video|><|end_of_video|>",
        "<|im_start|>assistant": "<|assistant|>",
        "<|im_start|>{{ message.role }}": "<|user|>",
        "<|im_end|>": "",
    }.items():
        template = template.replace(ours, theirs)
    its_processor = Glm46VProcessor(
        image_processor=Glm46VImageProcessor(**small, size={"shortest_edge": 256, "longest_edge": 1024}),
        tokenizer=tokenizer,
        video_processor=Glm46VVideoProcessor(**small, size={"shortest_edge": 256, "longest_edge": 8192}),
        chat_template=template,
    )
    return Glm46VForConditionalGeneration(config), its_processor


@pytest.mark.parametrize("make", [_tiny_qwen2_5_vl, _tiny_glm])
def test_other_models_load_from_their_own_format(make, processor, tmp_path):
    torch.manual_seed(0)
    model, its_processor = make(processor)
    model.save_pretrained(tmp_path)
    its_processor.save_pretrained(tmp_path)
    loaded = VisionLanguageModel.from_pretrained(tmp_path)
    assert type(loaded.model) is type(model) and loaded.model.config._attn_implementation == "sdpa"
    prompt = loaded.prompt([torch.rand(9, 3, 32, 32)], ["describe the video"])
    with torch.no_grad():
        results = (m(**prompt.tensors).logits for m in (loaded.model, model.eval()))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    assert len(loaded.answer(prompt, 3)) == 1
