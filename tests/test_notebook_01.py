"""Notebook 01: its exercises judge right and wrong answers."""

import re

import pytest
import torch
from notebook_cells import Book
from test_vision_language import TEXT, VISION
from torch.nn import functional as F

from vera_lite.media.video_writer import write_video
from vera_lite.toy.vlm import toy_processor
from vera_lite.training.toy.dialogues import toy_qwen3_vl

BOOK = Book("01_attention_diagnostics")
EXERCISES = {"mass_by_group": "check_mass", "token_at": "check_token"}


@pytest.fixture(scope="module")
def book():
    return BOOK.definitions()


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_passes(name, book):
    book[EXERCISES[name]](BOOK.solution(book, name))


@pytest.mark.parametrize("name", EXERCISES)
def test_an_unsolved_exercise_says_so(name, book, capsys):
    book["attempt"](name, lambda: book[EXERCISES[name]](book[name]))
    assert capsys.readouterr().out == f"{name}: not solved yet\n"


def values(labels, groups, q):
    return F.one_hot(labels, groups).to(q)


def attend(q, v, k, **options):
    return F.scaled_dot_product_attention(q, k, v.expand(len(q), -1, -1), **options)


def mean(q, k, labels, groups):
    v = values(labels, groups, q)
    return attend(q, v / v.sum(0).clamp_min(1), k)


def shifted(q, k, labels, groups):
    return attend(q, values((labels + 1) % groups, groups, q), k)


def without_the_last(q, k, labels, groups):
    return attend(q, values(labels, groups, q), k)[..., : int(labels.max())]


def token(slot_of, row_length, swap=False):
    def token_at(frame, y, x, frames, height, width, size):
        if frame not in frames:
            return None
        y, x = (x, y) if swap else (y, x)
        return (
            slot_of(frame, frames) * (height // size) * (width // size) + y // size * row_length + x // size
        )

    return token_at


def half(frame, frames):
    return frames.index(frame) // 2


WRONG = {
    "mass_by_group": {
        "mean over a group's keys": mean,
        "the scale is missing": lambda q, k, labels, n: attend(q, values(labels, n, q), k, scale=1.0),
        "groups are mixed up": shifted,
        "(heads, queries, groups)": without_the_last,
        "masses must sum to one": lambda q, k, labels, n: attend(q, values(labels, n, q) * 0.5, k),
    },
    "token_at": {
        "x and y are swapped": token(half, 8, swap=True),
        "a row has width / size tokens": token(half, 4),
        "the slot counts sampled frames": token(lambda f, _: f // 2, 8),
        "two frames share a token": token(lambda f, shown: shown.index(f), 8),
    },
}


@pytest.mark.parametrize(("name", "hint"), [(n, h) for n, hints in WRONG.items() for h in hints])
def test_a_wrong_answer_is_named(name, hint, book):
    with pytest.raises(AssertionError, match=re.escape(hint)):
        book[EXERCISES[name]](WRONG[name][hint])


def test_a_frame_that_was_not_shown_has_no_token(book):
    solution = BOOK.solution(book, "token_at")

    def never_none(frame, y, x, frames, *sizes):
        return solution(frame if frame in frames else frames[0], y, x, frames, *sizes)

    with pytest.raises(AssertionError, match="never shown"):
        book["check_token"](never_none)


def test_the_solution_of_the_mass_keeps_the_type(book):
    q = torch.randn(1, 3, 8, dtype=torch.bfloat16)
    assert BOOK.solution(book, "mass_by_group")(q, q, torch.tensor([0, 1, 1]), 2).dtype == q.dtype


def test_the_ladder_of_a_model_of_ones_own(book, tmp_path):
    """What the parameters `model`, `clips_folder` and `masks_folder` run, on a tiny random model."""
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
    folders = [str(tmp_path / name) for name in ("model", "clips", "masks")]
    ladder = book["ladder_of"](*folders, "the red ring in the video")
    assert ladder.heat.shape[:2] == (3, layers) and ladder.coverage.mean() > 0.05
    assert ladder.coverage.shape[1] == 8 * 10  # all 16 frames that the reader chose: 8 slots of 10 tokens
    [axes] = book["ladder_figure"](ladder, "tiny").axes
    assert [len(line.get_ydata()) for line in axes.lines] == [layers] * 3
