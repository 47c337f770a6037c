"""The store: nothing is done twice, nothing is lost, and whatever a stage does to itself is a row."""

import json
import shutil
from pathlib import Path

import pytest
from corpus.bad_files import make_files
from small_stages import Bright, Cap, Measure, Slow, Triple, Trouble, clip, numbers

from vera_lite.dataset.audit import audit, finished
from vera_lite.dataset.run import Source, add_samples, add_sources, manifest_hash, record_stages, run
from vera_lite.dataset.stage import Choice, Ok, Sample, Stage, digest, task_key
from vera_lite.dataset.store import DEATHS, Store, Writer, sha256
from vera_lite.errors import UserError


def fill(folder, *facts, stages=None, **options):
    """A store with one small clip per dict of facts, run through stages in this process."""
    store, clips = Store(folder / "store"), folder / "clips"
    clips.mkdir(exist_ok=True)
    sources = [
        Source(path, path.name, "object_addition", given)
        for path, given in ((clip(clips, i, 0.5 + i / 20), f) for i, f in enumerate(facts))
    ]
    add_sources(store, sources)
    stages = [Measure(), Trouble()] if stages is None else stages
    return store, run(store, stages, workers=0, progress=False, **options)


def segments(store):
    return sorted((store.folder / "journal").iterdir())


# --- keys ---------------------------------------------------------------------------------------------


def test_whatever_changes_an_outcome_changes_its_key():
    sample = Sample("k", "c", {"clip": "files/aa/1.mkv"}, {"licence": "CC0"})
    stage = Measure(radius=3)
    others = [
        (Sample("l", "c", sample.files, sample.facts), stage),
        (Sample("k", "d", sample.files, sample.facts), stage),
        (Sample("k", "c", {"clip": "files/aa/2.mkv"}, sample.facts), stage),
        (Sample("k", "c", sample.files, {"licence": "CC-BY"}), stage),
        (sample, Measure(radius=4)),
        (sample, Measure(radius=3, name="other")),
    ]
    newer = Measure(radius=3)
    newer.version = "2"
    keys = {task_key(*pair) for pair in [(sample, stage), *others, (sample, newer)]}
    assert len(keys) == 8
    assert task_key(Sample("k", "c", dict(sample.files), dict(sample.facts)), Measure(radius=3)) in keys


def test_a_digest_does_not_depend_on_the_order_of_a_dict_and_refuses_nan():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    with pytest.raises(ValueError):
        digest(float("nan"))


def test_stages_and_choices_are_told_apart():
    assert isinstance(Measure(), Stage) and not isinstance(Measure(), Choice)
    assert isinstance(Cap(), Choice)


# --- runs ---------------------------------------------------------------------------------------------


def test_files_are_named_by_their_content_and_a_second_run_does_nothing(tmp_path):
    store, ledger = fill(tmp_path, {}, {}, {})
    assert ledger.problems == [] and ledger.pending == 0
    files = [path for path in (store.folder / "files").rglob("*") if path.is_file()]
    assert len(files) == 6  # three clips and three dark copies
    assert all(path.stem == sha256(path) and path.parent.name == path.stem[:2] for path in files)
    rows, manifest = segments(store), manifest_hash(store)
    again = run(store, [Measure(), Trouble()], workers=0, progress=False)
    assert segments(store) == rows and manifest_hash(store) == manifest and again.table() == ledger.table()
    assert not list((store.folder / "running").iterdir()) and not (store.folder / "tmp").exists()


def test_a_new_version_is_run_anew_and_the_old_outcomes_are_noted(tmp_path):
    store, _ = fill(tmp_path, {}, {})
    newer = Measure()
    newer.version = "2"
    ledger = run(store, [newer, Trouble()], workers=0, progress=False)
    assert store.done.total() == 6  # its files have the same content, so the next stage has nothing to do
    assert ledger.notes == ["2 outcomes belong to other stages or settings and are not counted"]


def test_clips_that_are_there_are_not_read_again(tmp_path):
    path = clip(tmp_path, 1)
    store = Store(tmp_path / "store")
    source = Source(path, "a.mkv", "c", {"licence": "CC0"})
    assert add_sources(store, [source]) == 1
    assert add_sources(store, [source]) == 0
    assert add_sources(store, [Source(path, "a.mkv", "c", {"licence": "unknown"})]) == 1
    assert [s.facts for s in store.inputs()] == [{"licence": "unknown"}]
    path.write_bytes(clip(tmp_path, 2).read_bytes())
    assert add_sources(store, [source]) == 1
    assert len(store.inputs()) == 2  # a changed file is another clip


def test_the_ledger_adds_up_over_copies_rejections_expansions_and_a_cap(tmp_path):
    store = Store(tmp_path / "store")
    paths = [clip(tmp_path, i) for i in range(6)]
    shutil.copy(paths[5], tmp_path / "copy.mkv")
    names = [*paths, tmp_path / "copy.mkv"]
    add_sources(store, [Source(path, path.name, "clip") for path in names])
    ledger = run(store, [Measure(), Bright(least=50.0), Triple(), Cap(most=2)], workers=0, progress=False)
    counts = {at: (ledger.inputs[at], dict(count)) for at, count in ledger.counts.items()}
    assert counts == {
        ("input", "clip"): (7, {"kept": 6, "rejected": 1}),
        ("measure", "clip"): (6, {"kept": 6}),
        ("bright", "clip"): (6, {"kept": 4, "rejected": 2}),
        ("triple", "clip"): (4, {"kept": 4}),
        ("cap", "add"): (4, {"kept": 2, "rejected": 2}),
        ("cap", "remove"): (4, {"kept": 2, "rejected": 2}),
        ("cap", "replace"): (4, {"kept": 2, "rejected": 2}),
    }
    assert ledger.problems == []
    assert ledger.reasons["input", "rejected", "copy_of_another"] == 1
    assert len(finished(store, [Measure(), Bright(least=50.0), Triple(), Cap(most=2)])) == 6


def test_a_cap_is_decided_again_when_there_are_more_samples(tmp_path):
    store = Store(tmp_path / "store")
    for count in (3, 5):
        add_samples(store, {sample.key: sample for sample in numbers(count)})
        run(store, [Cap(most=2)], workers=0, progress=False)
        kept = [sample.key for sample in finished(store, [Cap(most=2)])]
        assert kept == sorted(sample.key for sample in numbers(count))[:2]


@pytest.mark.parametrize(
    ("trouble", "reason", "said"),
    [
        ("raise", "stage_error", "RuntimeError: this clip, its clip"),
        ("memory", "out_of_memory", "MemoryError"),
        ("fail", "failed", "I give up."),
        ("missing", "bad_output", "mask.mkv"),
        ("cut", "bad_output", "mask.mkv"),
        ("nan", "stage_error", "JSON"),
        ("nothing", "stage_error", "NoneType"),
    ],
)
def test_whatever_a_stage_does_is_a_row(tmp_path, monkeypatch, trouble, reason, said):
    monkeypatch.setattr("vera_lite.dataset.chain._PAUSES", (0, 0))
    store, ledger = fill(tmp_path, {"trouble": trouble}, {})
    (row,) = ledger.quarantined
    assert (row["reason"], ledger.counts["trouble", "object_addition"]["kept"]) == (reason, 1)
    assert said in row["error"] and str(tmp_path) not in row["error"]
    assert ledger.problems == [] and ledger.names[row["key"]] == "00.mkv"


def test_a_full_disk_stops_the_run_and_blames_no_sample(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("vera_lite.dataset.store.os.replace", full)
        with pytest.raises(OSError, match="No space"):
            fill(tmp_path, {})
    store, ledger = fill(tmp_path, {})
    assert ledger.quarantined == [] and ledger.pending == 0
    with monkeypatch.context() as patch:
        patch.setattr(Measure, "__call__", full)
        with pytest.raises(OSError, match="No space"):
            run(store, [Measure(radius=1)], workers=0, progress=False)
    assert run(store, [Measure(radius=1)], workers=0, progress=False).quarantined == []


def test_retries_void_an_outcome_whatever_order_the_segments_are_read_in(tmp_path):
    store, ledger = fill(tmp_path, {"trouble": "fail"})
    stages = [Measure(), Trouble()]
    writer = Writer(store, "0000first")  # sorts before the run that it voids
    writer.retry(ledger.quarantined[0])
    writer.close()
    assert audit(Store(store.folder), stages).pending == 1
    assert audit(Store(store.folder), stages).problems == []
    again = run(Store(store.folder), stages, workers=0, progress=False)
    assert len(again.quarantined) == 1 and again.pending == 0


# --- what an audit finds --------------------------------------------------------------------------------


def test_a_lost_row_is_found(tmp_path):
    store, _ = fill(tmp_path, {}, {})
    segment = next(path for path in segments(store) if "outcome" in path.read_text())
    lines = segment.read_text().splitlines(keepends=True)
    segment.write_text("".join(lines[:-1]))
    ledger = audit(Store(store.folder), [Measure(), Trouble()])
    assert ledger.pending == 1 and len(ledger.problems) == 1 and "lost" in ledger.problems[0]


def test_a_lost_input_is_found(tmp_path):
    store, _ = fill(tmp_path, {}, {})
    segment = next(path for path in segments(store) if '"kind": "input"' in path.read_text())
    segment.write_text(segment.read_text().splitlines(keepends=True)[0])
    ledger = audit(Store(store.folder), [Measure(), Trouble()])
    assert any("lost a row: input" in problem for problem in ledger.problems)


def test_missing_and_changed_files_are_found(tmp_path):
    store, _ = fill(tmp_path, {}, {})
    samples = finished(store, [Measure(), Trouble()])
    store.path(samples[0].files["dark"]).unlink()
    path = store.path(samples[1].files["clip"])
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    problems = audit(store, [Measure(), Trouble()]).problems
    assert sorted(problem.split(" is ")[1] for problem in problems) == ["changed", "missing"]


def test_a_stage_that_is_no_pure_function_is_found(tmp_path):
    store, _ = fill(tmp_path, {})
    row = store.outcome(store.tasks[-1])
    writer = Writer(store, "later")
    changed = {name: value for name, value in row.items() if name not in ("kind", "run")}
    writer.record(changed | {"status": "rejected", "reason": "x"})
    writer.close()
    assert any("pure" in problem for problem in audit(Store(store.folder), [Measure(), Trouble()]).problems)


def test_half_a_line_is_no_row_and_a_broken_one_is_found(tmp_path):
    store, _ = fill(tmp_path, {}, {})
    segment = segments(store)[-1]
    whole = segment.read_bytes()
    segment.write_bytes(whole + b'{"kind": "outcome", "task"')
    assert audit(Store(store.folder), [Measure(), Trouble()]).problems == []
    segment.write_bytes(whole + b"\x00\x00\xff\n")
    assert any("cannot be read" in p for p in audit(Store(store.folder), [Measure(), Trouble()]).problems)


def test_a_name_cannot_lead_out_of_the_store(tmp_path):
    store = Store(tmp_path / "store")
    for name in ("/etc/passwd", "files/../../secret", "journal/x", "../x"):
        with pytest.raises(ValueError):
            store.path(name)


def test_a_stage_cannot_take_files_from_elsewhere(tmp_path):
    class Thief(Slow):
        def __call__(self, sample, inputs, out):
            (out / "link.json").symlink_to("/etc/hostname")
            return Ok(Sample(sample.key, sample.category, {"link": "link.json"}, {}))

    _, ledger = fill(tmp_path, {}, stages=[Thief(seconds=0)])
    assert ledger.quarantined[0]["reason"] == "bad_output"


# --- deaths ---------------------------------------------------------------------------------------------


def test_deaths_count_within_a_run_and_the_end_of_a_whole_run_counts_for_nobody(tmp_path):
    store = Store(tmp_path / "store")
    with store.lock():
        for run_name, count in (("aa", 1), ("bb", 2), ("cc", 2)):
            for i in range(count):
                (store.folder / "running" / f"{run_name}-host-{i}").write_text("task\nSegmentation fault\n")
        (store.folder / "running" / "cc-host-9").write_text("other\n")
    assert store.deaths("cc")["task"] == 0 + 1 + 2 >= DEATHS
    assert store.deaths("dd") == {"task": 0 + 1 + 1, "other": 0}
    assert store.last_words("task") == "Segmentation fault" and store.last_words("other") == ""
    store.forget_deaths(["task"])
    assert store.deaths("dd") == {"other": 0}


def test_a_process_that_ends_while_another_looks_is_no_death(tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    with store.lock():
        for process in (1, 2):
            (store.folder / "running" / f"aa-host-{process}").write_text("task\n")
    read = Path.read_text

    def leaving(path, **options):
        path.with_name("aa-host-2").unlink(missing_ok=True)
        return read(path, **options)

    monkeypatch.setattr(Path, "read_text", leaving)
    assert store.deaths("aa") == {"task": 1}


def test_two_runs_cannot_work_on_one_store(tmp_path):
    store = Store(tmp_path / "store")
    with store.lock(), pytest.raises(UserError, match="another run"), Store(tmp_path / "store").lock():
        pass


def test_a_folder_of_other_things_is_no_store(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UserError):
            Store(path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_configuration_that_is_costly_to_tell_is_asked_for_once(tmp_path):
    class Costly(Measure):
        asked = 0

        @property
        def config(self):
            type(self).asked += 1
            return {}

        @config.setter
        def config(self, value):
            pass

    fill(tmp_path, {}, {}, {}, stages=[Costly()])
    assert Costly.asked == 1


def test_stages_need_names_of_their_own(tmp_path):
    for stages in ([Measure(), Measure(radius=2)], [Measure(name="input")]):
        with pytest.raises(UserError, match="name"):
            run(Store(tmp_path / "store"), stages, workers=0)


# --- damaged clips ----------------------------------------------------------------------------------------

DAMAGED = [
    *("empty.mp4", "noise.mp4", "text.mp4", "cut.mkv", "cut.mp4", "uneven.mp4", "pq.mp4", "hlg.mp4"),
    *("ycgco.mp4", "mirrored.mp4", "no_times.h264", "sizes.mkv", "no_frames.avi", "song.m4a", "good.png"),
]


def test_every_damaged_clip_is_quarantined_with_its_reason(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    make_files(corpus)
    whole = (corpus / "whole.mp4").read_bytes()
    files = {name: (corpus / name).read_bytes() for name in DAMAGED}
    files |= {f"cut_to_{share}.mp4": whole[: len(whole) * share // 100] for share in (1, 10, 50, 75, 95, 99)}
    files |= {
        "swapped_bytes.mp4": whole[1:] + whole[:1],
        "zeroed_end.mp4": whole[:-5000] + bytes(5000),
        "zeroed_start.mp4": bytes(500) + whole[500:],
        "matroska_named_mp4.mp4": (corpus / "cut.mkv").read_bytes()[:-5000],
        "html.mp4": b"<!DOCTYPE html><title>404</title>" * 20,
        "gzip.mkv": b"\x1f\x8b\x08" + bytes(4000),
    }
    clips = tmp_path / "clips"
    clips.mkdir()
    for name, content in files.items():
        (clips / name).write_bytes(content)
    good = clip(clips, 1)
    store = Store(tmp_path / "store")
    add_sources(store, [Source(path, path.name, "clip") for path in sorted(clips.iterdir())])
    ledger = run(store, [Measure()], workers=0, progress=False)
    quarantined = {ledger.names[row["key"]]: row for row in ledger.quarantined}
    assert len(files) >= 25 and set(quarantined) == set(files)
    assert all(row["reason"] == "damaged_file" and len(row["error"]) > 20 for row in quarantined.values())
    assert [ledger.names[s.key] for s in finished(store, [Measure()])] == [good.name]
    assert ledger.problems == []
    for name in files:  # nothing was done to the originals
        assert (clips / name).read_bytes() == files[name]


def test_bits_that_flip_where_no_decoder_looks_are_found_by_the_audit(tmp_path):
    store, _ = fill(tmp_path, {})
    path = store.path(store.inputs()[0].files["clip"])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    record_stages(store, [Measure(), Trouble()], None)
    problems = audit(Store(store.folder), [Measure(), Trouble()]).problems
    assert len(problems) == 1 and "changed" in problems[0]


def test_rows_survive_json(tmp_path):
    store, _ = fill(tmp_path, {"licence": "CC BY 4.0", "source": "https://example.org/ä"})
    rows = [json.loads(line) for line in (store.folder / "manifest.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["input", "measure", "trouble"]
    assert rows[-1]["samples"][0]["facts"]["source"] == "https://example.org/ä"  # carried along
    assert not {"seconds", "run", "deaths", "trace"} & set().union(*rows)
