"""Notebook 06: its measures say what they claim, and its stage is interrupted as it says."""

from pathlib import Path

import pytest
import torch
from notebook_cells import BOOKS

from vera_lite.dataset.run import run


@pytest.fixture
def book(tmp_path):
    names = BOOKS["06_dataset_pipeline"].definitions()
    return names | {"folder": tmp_path}


def test_sad_counts_wrong_pixels(book):
    true = torch.zeros(2, 1, 10, 10)
    assert book["sad"](true, true) == 0
    wrong = true.clone()
    wrong[0, 0, :4] = 1
    assert book["sad"](wrong, true) == pytest.approx(0.02)  # 40 pixels in one of two frames


def test_the_stage_is_interrupted_and_the_run_continues(book, tmp_path):
    Square = book["Square"]
    book["numbers"].__globals__.update(rows=70, folder=tmp_path)
    store = book["numbers"]("some")
    stops = 0
    while len(store.tasks) < 70:
        try:
            run(store, [Square()], workers=0, progress=False)
        except KeyboardInterrupt:
            stops += 1
    assert stops == 2 and all(len(store.outcomes(task)) == 1 for task in store.tasks)


def test_the_samples_that_it_reads_are_there():
    assert {p.name for p in (Path(__file__).parents[2] / "data_samples" / "raw").glob("*.mp4")} >= {
        "dog.mp4",
        "cut_short.mp4",
    }
