"""Notebook 01: the solution on other types, and its ladder on a model of the reader."""

import pytest
import torch
from notebook_cells import BOOKS
from test_vision_language import TEXT, VISION

from vera_lite.conditioning.vision_language import VisionLanguageModel
from vera_lite.media.masked_clips import read_masked_clips
from vera_lite.media.video_writer import write_video
from vera_lite.toy.vlm import toy_processor
from vera_lite.training.toy.dialogues import toy_qwen3_vl


@pytest.fixture
def book():
    return BOOKS["01_attention_diagnostics"].definitions()


def test_the_solution_of_the_mass_keeps_the_type(book):
    q = torch.randn(1, 3, 8, dtype=torch.bfloat16)
    assert (
        BOOKS["01_attention_diagnostics"]
        .solution(book, "mass_by_group")(q, q, torch.tensor([0, 1, 1]), 2)
        .dtype
        == q.dtype
    )


def test_the_ladder_of_a_model_of_ones_own(book, tmp_path):
    """What the parameters of a model of one's own run, on a tiny random model."""
    layers = 4
    torch.manual_seed(0)
    toy_qwen3_vl(TEXT | {"num_hidden_layers": layers}, VISION).save_pretrained(tmp_path / "model")
    toy_processor().save_pretrained(tmp_path / "model")
    for folder in ("clips", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(3):
        mask = torch.zeros(20 + i, 1, 24, 32, dtype=torch.uint8)
        mask[:, :, 4 : 12 + i, 6 * i : 6 * i + 12] = 255
        clip = torch.randint(256, (len(mask), 3, 24, 32), dtype=torch.uint8)
        write_video(tmp_path / "clips" / f"{i}.mkv", clip, 8, "lossless")
        write_video(tmp_path / "masks" / f"{i}.mask.mkv", mask, 8, "lossless")
    reader = VisionLanguageModel.from_pretrained(tmp_path / "model")
    clips = read_masked_clips(tmp_path / "clips", tmp_path / "masks")
    ladder = book["ladder_of"](reader, clips, "the red ring in the video")
    assert ladder.heat.shape[:2] == (3, layers) and ladder.coverage.mean() > 0.05
    assert ladder.coverage.shape[1] == 8 * 10  # all 16 frames that the reader chose: 8 slots of 10 tokens
    [axes] = book["ladder_figure"](ladder, "tiny").axes
    assert [len(line.get_ydata()) for line in axes.lines] == [layers] * 3
