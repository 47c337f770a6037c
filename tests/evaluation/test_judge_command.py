"""`vera-lite judge`: methods x clips -> records -> a table that can be made again offline."""

import json
import socket
from dataclasses import replace
from decimal import Decimal

import pytest

from vera_lite.apps.judge import protocols
from vera_lite.cli import main
from vera_lite.errors import UserError
from vera_lite.evaluation import judging
from vera_lite.evaluation.judge_table import table
from vera_lite.evaluation.judges import PROTOCOLS
from vera_lite.evaluation.judging import Record
from vera_lite.media.clip import to_uint8
from vera_lite.media.video_writer import write_video
from vera_lite.toy.world import WorldConfig

CLIPS = 3


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A benchmark of three clips, the true edits as one method and the sources as another."""
    folder = tmp_path_factory.mktemp("bench")
    batch = WorldConfig(9, 32, 32, tasks=("add",), behind=0.0, shadow=0.0).render(2_000_000, range(CLIPS))
    entries = []
    for i in range(CLIPS):
        for name in ("sources", "nothing"):
            (folder / name).mkdir(exist_ok=True)
            write_video(folder / name / f"{i}.mkv", to_uint8(batch.source[i].clone()), 8.0, "lossless")
        (folder / "truth" / str(i)).mkdir(parents=True)
        write_video(
            folder / "truth" / str(i) / "final.mkv", to_uint8(batch.composite[i].clone()), 8.0, "lossless"
        )
        facts = {"category": "add", "instruction": batch.instruction[i], "source": f"sources/{i}.mkv"}
        entries.append({"id": str(i)} | facts)
    (folder / "clips.json").write_text(json.dumps(entries))
    return folder


def arguments(bench, out, *more, methods=("truth", "nothing"), protocol="toy_vqa", clips="clips.json"):
    named = [f"--method={name}={bench / name}" for name in methods]
    return ["judge", str(bench / clips), *named, "--protocol", protocol, "--out", str(out), *more]


@pytest.fixture(scope="module")
def judged(bench, tmp_path_factory):
    out = tmp_path_factory.mktemp("judged")
    assert main(arguments(bench, out)) == 0
    return out


def test_the_true_edit_is_seen_and_the_source_is_not_taken_for_it(judged):
    records = judging.read_records(judged / "records.jsonl")
    assert len(records) == 2 * CLIPS and {r.outcome for r in records} == {"ok"}
    rows = table(records, protocols()["toy_vqa"])
    (judge, _), *_ = rows
    assert judge.startswith("vlm_toy@")
    truth, nothing = rows[judge, "truth"]["overall"], rows[judge, "nothing"]["overall"]
    assert truth.value > nothing.value and truth.valid == truth.total == CLIPS
    assert f"{truth}" in (judged / "table.md").read_text()
    assert not any(str(judged.parent) in line for line in (judged / "records.jsonl").read_text().splitlines())


def test_the_table_is_made_again_without_judge_and_network(judged, monkeypatch, capsys):
    def nobody(*_, **__):
        raise AssertionError("asked")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    monkeypatch.setattr(judging.LocalJudge, "__init__", nobody)
    assert main(["judge", "--replay", str(judged)]) == 0
    assert (judged / "table.md").read_text() in capsys.readouterr().out


def test_a_table_that_is_not_that_of_its_records_is_noticed(judged, tmp_path, capsys):
    lines = (judged / "records.jsonl").read_text().splitlines()
    changed = json.loads(lines[0]) | {"reply": "no idea"}
    (tmp_path / "records.jsonl").write_text("\n".join([json.dumps(changed), *lines[1:]]) + "\n")
    (tmp_path / "table.md").write_text((judged / "table.md").read_text())
    assert main(["judge", "--replay", str(tmp_path)]) == 1
    assert "not the table" in capsys.readouterr().err


def test_a_run_that_was_killed_goes_on_where_it_was(bench, judged, tmp_path, monkeypatch):
    whole = (judged / "records.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "records.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:40])
    asked, ask = [], judging.LocalJudge.ask
    monkeypatch.setattr(judging.LocalJudge, "ask", lambda *a: asked.append(a) or ask(*a))
    assert main(arguments(bench, tmp_path)) == 0
    assert len(asked) == 2 * CLIPS - 4
    again, before = (judging.read_records(p / "records.jsonl") for p in (tmp_path, judged))
    assert [replace(r, seconds=None) for r in again] == [replace(r, seconds=None) for r in before]
    assert (tmp_path / "table.md").read_text() == (judged / "table.md").read_text()


def test_a_second_method_shares_the_table_and_two_protocols_do_not(bench, judged, tmp_path, capsys):
    (tmp_path / "records.jsonl").write_bytes((judged / "records.jsonl").read_bytes())
    first = judging.read_records(judged / "records.jsonl")[0]
    log = judging.Log(tmp_path / "records.jsonl")
    log.add(replace(first, protocol="rvedit", rubric=PROTOCOLS["rvedit"].rubric))
    before = log.path.read_bytes()
    assert main(arguments(bench, tmp_path)) == 2  # nothing is asked that could not be counted
    assert log.path.read_bytes() == before
    assert main(["judge", "--replay", str(tmp_path)]) == 2
    assert "scales and rules differ" in capsys.readouterr().err
    with pytest.raises(UserError, match="rubric old"):
        table([replace(first, rubric="old")], protocols()["toy_vqa"])
    with pytest.raises(UserError, match="no records"):
        table([], protocols()["toy_vqa"])


WRONG = {
    "no arguments": lambda bench, out: ["judge"],
    "no protocol": lambda bench, out: arguments(bench, out)[:4],
    "an unknown protocol": lambda bench, out: arguments(bench, out, protocol="stars"),
    "a category of another protocol": lambda bench, out: arguments(bench, out, protocol="rvedit"),
    "a method without folder": lambda bench, out: arguments(bench, out, "--method=b="),
    "a method twice": lambda bench, out: arguments(bench, out, methods=("truth", "truth")),
    "a folder that is not there": lambda bench, out: arguments(bench, out, methods=("lost",)),
    "a folder without results": lambda bench, out: arguments(bench, out, f"--method=b={bench.parent}"),
    "a server without model": lambda bench, out: arguments(bench, out, "--server", "http://127.0.0.1:1/v1"),
    "a model that is not there": lambda bench, out: arguments(bench, out, "--model", "no-such/model"),
    "no clips": lambda bench, out: ["judge", str(bench / "no.json"), *arguments(bench, out)[2:]],
    "clips that are no JSON": lambda bench, out: [
        "judge",
        str(bench / "truth/0/final.mkv"),
        *arguments(bench, out)[2:],
    ],
    "an output that is a file": lambda bench, out: arguments(bench, bench / "clips.json"),
    "replay and clips": lambda bench, out: [*arguments(bench, out), "--replay", str(bench)],
    "replay of nothing": lambda bench, out: ["judge", "--replay", str(bench)],
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_mistake_is_one_sentence_and_no_work(bench, tmp_path, kind, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(WRONG[kind](bench, tmp_path / "out")) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("vera-lite: ") and "Traceback" not in "".join(said)
    assert not (tmp_path / "out" / "records.jsonl").exists()


@pytest.mark.parametrize(
    "entries",
    [
        {},
        [],
        [1],
        [{"id": "0"}],
        [{"id": "0", "category": "add", "instruction": "", "source": "x"}],
        "twice",
        "lost",
    ],
    ids=str,
)
def test_clips_that_are_not_described_are_refused(bench, tmp_path, entries, capsys):
    good = json.loads((bench / "clips.json").read_text())
    if entries == "twice":
        entries = [good[0], good[0]]
    if entries == "no instruction":
        entries = [good[0] | {"instruction": ""}]
    if entries == "no question":
        entries = [good[0], good[1] | {"instruction": "give it a haircut"}]
    if entries == "a number":
        entries = [good[0] | {"reference": 5}]
    if entries == "lost":
        entries = [good[0] | {"source": "no.mkv"}]
    (tmp_path / "clips.json").write_text(json.dumps(entries))
    call = arguments(bench, tmp_path / "out")
    assert main([call[0], str(tmp_path / "clips.json"), *call[2:]]) == 2
    assert capsys.readouterr().err.startswith("vera-lite: ")


def test_records_of_another_kind_are_refused(judged, tmp_path):
    for text in ("{}\n", "[]\n", "hello\n", '{"item": 1}\n'):
        (tmp_path / "records.jsonl").write_text(text)
        with pytest.raises(UserError, match="line 1"):
            judging.read_records(tmp_path / "records.jsonl")


# --- tables, from records made by hand -------------------------------------------------------------


def record(item, method, scores, category="local add", judge="j", protocol="rvedit", attempt=1):
    """One reply of RVEDiT's form, or Vera's; without scores it does not parse."""
    chosen = PROTOCOLS[protocol]
    lines = zip(chosen.axes.values(), scores or [], strict=False)
    reply = "\n".join(f"{name}: {score}" for name, score in lines) or "no"
    hashes = {"rubric": chosen.rubric, "request": item + method + judge, "prompt": "", "frames": []}
    asked = {"item": item, "category": category, "instruction": "do it", "method": method, "call": "all"}
    outcome = "ok" if scores else "parse_fail"
    return Record(
        **hashes, **asked, protocol=protocol, judge=judge, attempt=attempt, reply=reply, outcome=outcome
    )


def test_macro_and_denominators_by_hand():
    records = [
        record("a", "m", [80, 60, 40]),  # mean 60
        record("b", "m", [90, 60, 60]),  # mean 70
        record("c", "m", None),
        record("d", "m", [10, 20, 30], category="global style"),  # mean 20
    ]
    row = table(records, PROTOCOLS["rvedit"])["j", "m"]
    assert row["local add"].value == 65 and (row["local add"].valid, row["local add"].total) == (2, 3)
    assert row["global style"].value == 20
    assert row["overall"].value == Decimal("42.5") and (row["overall"].valid, row["overall"].total) == (3, 4)
    assert row["IC"].value == Decimal("47.5")  # (85 + 10) / 2
    assert row["overall"].low is None and row["local add"].low <= 65 <= row["local add"].high
    micro = replace(PROTOCOLS["rvedit"], macro=False)
    records = [replace(r, rubric=micro.rubric) for r in records]
    assert table(records, micro)["j", "m"]["overall"].value == 50


def test_a_clip_without_scores_is_no_number_whatever_the_record_says():
    lying = replace(record("a", "m", None), outcome="ok", scores={"IC": 1, "CF": 1, "VQ": 1})
    blocked = replace(record("b", "m", [5, 5, 5]), outcome="blocked")
    row = table([lying, blocked], PROTOCOLS["rvedit"])["j", "m"]
    assert row["overall"].value is None and str(row["overall"]) == "– (0/2)"


def test_clips_that_only_some_methods_have_are_told_apart():
    records = [record(i, m, [s] * 3) for m, s in (("good", 90), ("bad", 10)) for i in "ab"]
    records += [record("c", "good", [30] * 3), record("c", "bad", None)]
    rows = table(records, PROTOCOLS["rvedit"])
    assert rows["j", "good"]["overall"].value == 70 and rows["j", "bad"]["overall"].value == 10
    shared = rows["j", "good"]["valid for all"]
    assert shared.value == 90 and (shared.valid, shared.total) == (2, 3)


def test_judges_stay_apart_in_rvedit_and_are_pooled_in_vera():
    for name, category in (("rvedit", "local add"), ("vera_vqa", "object addition")):
        records = [
            record(item, "m", scores, category, judge, name)
            for judge, by_item in (
                ("x", {"a": [5, 5, 5], "b": [2, 2, 2]}),
                ("y", {"a": [2, 2, 2], "b": None}),
            )
            for item, scores in by_item.items()
        ]
        rows = table(records, PROTOCOLS[name])
        if name == "rvedit":
            assert rows["x", "m"]["overall"].value == Decimal("3.5") and rows["y", "m"]["overall"].value == 2
        else:
            assert list(rows) == [("x + y", "m")] and rows["x + y", "m"]["CS"].value == Decimal("3.5")
            assert rows["x + y", "m"]["overall"].valid == 1  # clip b lacks a judge


def test_the_reply_that_parses_counts_after_those_that_did_not():
    records = [record("a", "m", None), record("a", "m", [50, 50, 50], attempt=2)]
    assert table(records, PROTOCOLS["rvedit"])["j", "m"]["overall"].value == 50


def test_an_interval_narrows_with_clips_and_covers_the_mean():
    def width(clips):
        records = [record(str(i), "m", [40 + i % 2 * 20] * 3) for i in range(clips)]
        cell = table(records, PROTOCOLS["rvedit"])["j", "m"]["overall"]
        assert cell.low < cell.value < cell.high
        return cell.high - cell.low

    assert 1.6 < width(20) / width(80) < 2.4
