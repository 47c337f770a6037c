"""Engines: processes of this machine and Ray give the same bytes, whatever is killed on the way."""

import importlib.util
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path

import pytest
from small_stages import Bright, Cap, Count, Measure, Slow, Triple, Trouble, Where, clip, numbers

from vera_lite.dataset import engines
from vera_lite.dataset.audit import audit
from vera_lite.dataset.run import Source, add_samples, add_sources, run
from vera_lite.dataset.store import Store
from vera_lite.errors import UserError

HERE = Path(__file__).parent
#: Processes that are killed start with torch imported.
CONTEXT = multiprocessing.get_context("forkserver")
SLOW = [Slow(name="first", seconds=0.05), Slow(name="second", seconds=0.05)]


def start(folder, workers):
    """A run in a process of its own, once it has begun."""
    journal = folder / "journal"
    known = len(list(journal.iterdir()))
    process = CONTEXT.Process(target=run, args=(Store(folder), SLOW), kwargs={"workers": workers})
    process.start()
    while process.is_alive() and len(list(journal.iterdir())) == known:
        time.sleep(0.005)
    return process


def contents(store):
    """Every file of a store and its manifest."""
    files = {p.relative_to(store.folder): p.read_bytes() for p in (store.folder / "files").rglob("*.*")}
    return files | {"manifest": (store.folder / "manifest.jsonl").read_bytes()}


def filled(folder, facts):
    store = Store(folder)
    clips = folder.with_name(folder.name + "_clips")
    clips.mkdir()
    sources = []
    for i, given in enumerate(facts):
        path = clip(clips, i, 0.3 + i / 20)
        sources.append(Source(path, path.name, "clip", given))
    add_sources(store, sources)
    return store


def counted(folder, count):
    store = Store(folder)
    add_samples(store, {sample.key: sample for sample in numbers(count)})
    return store


TROUBLES = ["kill", "kill once", "hang", None, None]


@pytest.mark.slow
def test_a_clip_that_kills_its_process_is_quarantined_and_the_others_go_on(tmp_path):
    store = filled(tmp_path / "store", [{"trouble": trouble} for trouble in TROUBLES])
    ledger = run(store, [Measure(), Trouble()], workers=2, timeout=1, progress=False)
    rows = {ledger.names[row["key"]]: row for row in ledger.quarantined}
    assert {name: row["reason"] for name, row in rows.items()} == {
        "00.mkv": "process_died",
        "02.mkv": "timed_out",
    }
    assert "small_stages.py" in rows["02.mkv"]["trace"]  # where it hung
    assert rows["00.mkv"]["deaths"] == 3
    once = [row for task in store.tasks for row in store.outcomes(task) if row.get("deaths") == 1]
    assert [(ledger.names[row["key"]], row["status"]) for row in once] == [("01.mkv", "kept")]
    assert ledger.problems == [] and ledger.counts["trouble", "clip"]["kept"] == 3
    assert all(len(store.outcomes(task)) == 1 for task in store.tasks)
    assert not list((store.folder / "running").iterdir())


STAGES = [Measure(), Trouble(), Bright(least=80.0), Triple(), Cap(most=2)]
FACTS = [{"trouble": "raise"}, {"trouble": "fail"}, {}, {}, {}]


@pytest.mark.slow
def test_all_engines_give_the_same_bytes(tmp_path, monkeypatch):
    made = {}
    engines = {"here": {"workers": 0}, "processes": {"workers": 2}}
    if importlib.util.find_spec("ray"):
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parents[1])]))
        engines["ray"] = {"workers": 1, "executor": "ray"}
    for name, options in engines.items():
        store = filled(tmp_path / name, FACTS)
        add_samples(store, {s.key: s for s in numbers(200)})  # without a clip: their first stage fails
        ledger = run(store, STAGES, progress=False, **options)
        assert ledger.problems == [] and ledger.pending == 0
        made[name] = contents(store), ledger.table()
    assert len({table for _, table in made.values()}) == 1
    assert all(content == made["here"][0] for content, _ in made.values())
    assert len(made["here"][0]) > 10


@pytest.mark.slow
def test_two_machines_of_a_cluster_write_one_store(tmp_path, monkeypatch):
    """Two nodes of Ray on this machine, joined by the address of the first."""
    pytest.importorskip("ray", reason="`pip install 'vera-lite[ray]'`")
    import ray
    from ray.cluster_utils import Cluster

    (tmp_path / "nodes").mkdir()
    monkeypatch.setenv("NODES", str(tmp_path / "nodes"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parents[1])]))
    local, shared = (filled(tmp_path / name, FACTS) for name in ("local", "shared"))
    run(local, STAGES, workers=0, progress=False)
    cluster = Cluster()
    try:
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1, include_dashboard=False)
        except Exception as error:  # Ray gives its nodes half a minute
            pytest.skip(f"Ray's nodes do not start here: {error}")
        where = {"executor": "ray", "workers": 2, "address": cluster.address, "progress": False}
        run(shared, STAGES, **where)
        assert contents(shared) == contents(local)
        run(counted(tmp_path / "more", 40), [Where()], **where)
        assert len(list((tmp_path / "nodes").iterdir())) == 2
        assert not ray.is_initialized()
    finally:
        cluster.shutdown()


def test_without_ray_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"vera-lite\[ray\]"):
        run(counted(tmp_path / "store", 2), [Count()], executor="ray", progress=False)


def test_ray_that_does_not_start_is_tried_twice(monkeypatch):
    class Broken:
        starts = 0

        def init(self, **_):
            self.starts += 1
            raise RuntimeError("raylet died")

        def shutdown(self):
            pass

    broken = Broken()
    with pytest.raises(UserError, match="raylet died"):
        engines._start_ray(broken, 2, None)
    assert broken.starts == 2


@pytest.mark.slow
def test_processes_that_cannot_start_end_the_run(tmp_path):
    class Unknown(Slow):
        def __reduce__(self):
            return exit, (3,)  # ends the process that unpickles it

    with pytest.raises(RuntimeError, match="before they begin"):
        run(counted(tmp_path / "store", 1), [Unknown(seconds=0)], workers=1, progress=False)


@pytest.mark.slow
def test_ten_kills_lose_nothing_and_do_nothing_twice(tmp_path):
    """kill -9 of the whole run at random moments, ten times; then it ends as if nothing had been."""
    moments, kills = random.Random(0), 0
    store, calm = (filled(tmp_path / name, [{}] * 16) for name in ("store", "calm"))
    for workers in [0, 0, 0, 0, 2] * 2:
        process = start(store.folder, workers)
        time.sleep(moments.random() * 0.2)
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
    store = Store(store.folder)
    ledger = run(store, SLOW, workers=0, progress=False)
    run(calm, SLOW, workers=0, progress=False)
    assert kills >= 5 and ledger.problems == [] and ledger.quarantined == []
    assert contents(store) == contents(calm)
    assert all(len(store.outcomes(task)) == 1 for task in store.tasks) and len(store.tasks) == 32
    assert audit(store, SLOW).problems == []


@pytest.mark.slow
def test_processes_end_with_the_run_that_started_them(tmp_path):
    store = filled(tmp_path / "store", [{}] * 40)
    process = start(store.folder, 2)
    running = store.folder / "running"
    pids = [int(marker.name.rpartition("-")[2]) for marker in running.iterdir()]
    assert pids and all(map(is_there, pids))
    process.kill()  # the run alone, not its processes
    process.join()
    end = time.monotonic() + 20
    while any(map(is_there, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(is_there, pids))


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
