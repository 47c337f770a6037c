"""Kept results: the four systems side by side, and the tables of judges."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from vera_lite.cli import main
from vera_lite.evaluation.judge_table import table
from vera_lite.evaluation.judges import half_up
from vera_lite.evaluation.judging import read_records
from vera_lite.evaluation.toy.tally import TEST_SEED
from vera_lite.evaluation.toy.vqa import TOY_VQA

ROOT = Path(__file__).parents[2]
JUDGED = sorted(path.parent for path in (ROOT / "results" / "judge").glob("*/records.jsonl"))


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import compare_systems

    return compare_systems


@pytest.fixture
def rows(script):
    return json.loads(script.REPORT.read_text())["rows"]


# --- the four systems ------------------------------------------------------------------------------


def test_the_report_has_every_row_and_its_table(script, rows):
    printed = script.table(json.loads(script.REPORT.read_text()))
    assert len(rows) == 11 and all(row in printed for row in rows)
    settings = json.loads(script.REPORT.read_text())
    assert (settings["clips"], settings["world_seed"]) == (script.CLIPS, TEST_SEED)
    assert tuple(settings["size"]) == script.SIZE


def test_layers_keep_what_redrawing_does_not(rows):
    """The question of the project, in every world that was measured: intervals do not touch."""
    layers = rows["Vera, with a mask: layer over the source"]
    redrawn = {
        name: row for name, row in rows.items() if name.endswith("its whole frame") or "own whole" in name
    }
    assert len(redrawn) == 4
    for row in redrawn.values():
        for ours, theirs in [
            (layers["toy"], row["toy"]),
            *zip(layers["real"].values(), row["real"].values(), strict=True),
        ]:
            for measure in ("kept_psnr", "kept_exactly", "exclusivity"):
                assert ours[measure][1] > theirs[measure][2], measure


def test_each_trivial_answer_is_perfect_by_one_measure_and_poor_by_another(rows):
    source, truth = rows["the source, untouched"]["toy"], rows["the truth"]["toy"]
    assert source["kept_psnr"][0] is None and source["instruction_compliance"][2] < 10
    assert truth["edit_psnr"][0] is None and truth["instruction_compliance"][1] > 95
    frozen = rows["the edited first frame, held"]["toy"]
    assert frozen["edit_psnr"][2] < rows["Vera, with a mask: layer over the source"]["toy"]["edit_psnr"][1]


def test_scores_of_the_source_and_the_truth(script):
    edits = script.WORLD.render(TEST_SEED, range(3))
    kept = script.score(edits, edits.source)
    assert (
        kept["kept_error"] == [0] * 3 and kept["kept_exactly"] == [1] * 3 and kept["exclusivity"] == [0] * 3
    )
    assert min(kept["edit_error"]) > 0.01
    true = script.score(edits, edits.target)
    assert true["edit_error"] == [0] * 3 and min(true["exclusivity"]) > 0.99
    summary = script.summary(kept)
    assert summary["kept_psnr"] == [None] * 3 and summary["edit_psnr"][1] <= summary["edit_psnr"][0]


def test_objects_are_drawn_on_real_videos_at_their_size(script):
    video = torch.full((9, 3, 60, 90), 0.5)
    edits = script.draw_on(video, range(2))
    assert edits.source.shape == edits.target.shape == (2, 9, 3, 60, 90)
    assert all(text.startswith("add a") for text in edits.instruction)
    changed = edits.changed > 0
    assert 0.02 < changed.float().mean() < 0.4
    assert float((edits.target - edits.source).abs()[~changed.expand_as(edits.target)].max()) <= 1 / 255
    matte = script.matte(edits, 0) > 0
    assert matte.any() and not (matte & ~changed[0]).any()
    small, results = script.at_model_size(edits, edits.target)
    assert small.source.shape == results.shape == (2, *script.SIZE[:1], 3, *script.SIZE[1:])


# --- judges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", JUDGED, ids=lambda path: path.name)
def test_a_kept_table_is_that_of_its_records(folder, tmp_path, capsys):
    assert main(["judge", "--replay", str(folder)]) == 0
    copy = shutil.copytree(folder, tmp_path / "copy")
    lines = (copy / "records.jsonl").read_text().splitlines(keepends=True)
    (copy / "records.jsonl").write_text("".join(lines[1:]))
    assert main(["judge", "--replay", str(copy)]) == 1


def test_the_toy_judge_ranks_the_truth_first_and_is_not_to_be_trusted_blindly():
    rows = table(read_records(ROOT / "results" / "judge" / "toy_vqa" / "records.jsonl"), TOY_VQA)
    overall = {method: row["overall"] for (_, method), row in rows.items()}
    assert set(overall) == {"truth", "source", "vera", "gencompositor", "rvedit", "mive"}
    assert overall["source"].high < overall["truth"].low
    assert overall["truth"].value < 1  # the judge itself errs


def test_the_page_beside_the_tables_has_their_numbers(rows):
    page = (ROOT / "results" / "judge" / "README.md").read_text()
    judged = table(read_records(ROOT / "results" / "judge" / "toy_vqa" / "records.jsonl"), TOY_VQA)
    overall = {method: row["overall"] for (_, method), row in judged.items()}
    assert f"The true edit scores {half_up(overall['truth'].value, 2)}" in page
    share = rows["Vera, with a mask: layer over the source"]["toy"]["kept_exactly"][0]
    assert f"leaves {100 * share:.1f} % of the other pixels" in page
    assert overall["vera"].low < overall["mive"].value < overall["vera"].high


def test_a_rubric_beyond_the_judge_gives_no_score():
    assert ROOT / "results" / "judge" / "rvedit_toy_model" in JUDGED
    records = read_records(ROOT / "results" / "judge" / "rvedit_toy_model" / "records.jsonl")
    assert records and {r.outcome for r in records} == {"parse_fail"} and not any(r.scores for r in records)
