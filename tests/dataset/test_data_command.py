"""`vera-lite data`: one sentence and exit code 2 for what a person got wrong, 1 for what is lost, else 0."""

import json

import pytest
from finished_samples import store_of
from PIL import Image
from small_stages import clip

from vera_lite.apps.data import build_stages, contact_sheet
from vera_lite.cli import main
from vera_lite.dataset.layers import CheckLayers
from vera_lite.dataset.store import Store
from vera_lite.errors import UserError

HERE = ["--workers", "0"]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "stages.yaml"
    stages = ("Measure", {}), ("Trouble", {}), ("Bright", {"least": 70.0})
    rows = [{"class_path": f"small_stages.{name}", "init_args": given} for name, given in stages]
    path.write_text(json.dumps({"stages": rows}))  # JSON is YAML
    return path


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    rows = []
    for number, trouble in ((1, None), (3, None), (5, "fail"), (7, None)):
        facts = {"file": clip(folder, number).name, "category": "object_addition", "licence": "CC0-1.0"}
        rows.append(facts | ({"trouble": trouble} if trouble else {}))
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def refused(capsys, *arguments):
    assert main([str(a) for a in arguments]) == 2
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if line.startswith("vera-lite: ")]
    return line


def test_run_audit_retry(tmp_path, clips, config, capsys):
    out = tmp_path / "out"
    assert main(["data", "run", str(clips), "--out", str(out), "--config", str(config), *HERE]) == 0
    said = capsys.readouterr().out
    assert "quarantined by trouble: 05.mkv: I give up." in said and "The ledger adds up" in said
    assert str(out / "sheet.png") in said and Image.open(out / "sheet.png").width > 900
    assert main(["data", "audit", str(out)]) == 0
    ledger = capsys.readouterr().out
    assert ledger.splitlines()[0].split()[2:] == ["inputs", "=", "kept", "rejected", "quarantined", "pending"]
    store = Store(out)
    assert {sample.facts["licence"] for sample in store.inputs()} == {"CC0-1.0"}
    before = store.done.total()
    assert main(["data", "retry", str(out), "--reason", "process_died", *HERE]) == 0
    assert "Nothing is quarantined as process_died." in capsys.readouterr().out
    assert main(["data", "retry", str(out), *HERE]) == 0
    assert "I give up." in capsys.readouterr().out  # the same again
    assert Store(out).done.total() == before + 1
    assert main(["data", "run", "--out", str(out), *HERE]) == 0  # goes on, with the configuration it had
    assert Store(out).done.total() == before + 1


def test_more_clips_are_added_to_a_dataset(tmp_path, clips, config, capsys):
    out = ["--out", str(tmp_path / "out"), "--config", str(config), *HERE]
    assert main(["data", "run", str(clips / "01.mkv"), "--category", "mine", *out]) == 0
    assert (
        main(["data", "run", str(clips / "03.mkv"), str(clips / "01.mkv"), "--category", "mine", *out]) == 0
    )
    store = Store(tmp_path / "out")
    assert len(store.inputs()) == 2 == len(store.input_rows)
    assert {sample.category for sample in store.inputs()} == {"mine"}


def test_the_audit_of_a_store_that_lost_something_exits_with_one(tmp_path, clips, config, capsys):
    out = tmp_path / "out"
    main(["data", "run", str(clips), "--out", str(out), "--config", str(config), *HERE])
    next((out / "files").rglob("*.mkv")).write_bytes(b"rotten")
    capsys.readouterr()
    assert main(["data", "audit", str(out)]) == 1
    said = capsys.readouterr().out
    assert "PROBLEM: files/" in said and "changed" in said and "adds up" not in said


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["data"], "action"),
        (["data", "run", "{}/none.mp4", "--out", "{}/out"], "none.mp4"),
        (["data", "run", "{}/empty", "--out", "{}/out"], "empty"),
        (["data", "run", "--out", "{}/out"], "at least one"),
        (["data", "run", "{}/clips", "--out", "{}/clips"], "other things"),
        (["data", "run", "{}/clips", "--out", "{}/stages.yaml"], "stages.yaml"),
        (["data", "run", "{}/clips", "--out", "{}/out", "--config", "{}/none.yaml"], "none.yaml"),
        (["data", "run", "{}/clips", "--out", "{}/out", "--workers", "-1"], "--workers"),
        (["data", "run", "{}/clips", "--out", "{}/out", "--timeout", "nan"], "--timeout"),
        (["data", "run", "{}/clips", "--out", "{}/out", "--address", "auto"], "--executor ray"),
        (["data", "audit", "{}/clips"], "holds no dataset"),
        (["data", "audit", "{}/none"], "none"),
        (["data", "retry", "{}/none"], "none"),
        (["data", "export", "{}/clips", "--out", "{}/out"], "holds no dataset"),
        (["data", "import", "{}/clips", "--out", "{}/out"], "no rows of Vera"),
    ],
)
def test_mistakes_are_one_sentence_before_any_work(tmp_path, clips, config, capsys, arguments, names):
    (tmp_path / "empty").mkdir()
    there = sorted(tmp_path.rglob("*"))
    assert names in refused(capsys, *(text.format(tmp_path) for text in arguments))
    assert sorted(tmp_path.rglob("*")) == there


@pytest.mark.parametrize(
    ("stages", "names"),
    [
        ("[", "YAML"),
        ("{}", "stages"),
        ("stages: []", "no stage"),
        ("stages: [{init_args: {}}]", "class_path"),
        ("stages: [{class_path: small_stages.Nothing}]", "Nothing"),
        ("stages: [{class_path: no_such_module.Stage}]", "no_such_module"),
        ("stages: [{class_path: os.system, init_args: {command: 'touch {}/hacked'}}]", "os.system"),
        ("stages: [{class_path: subprocess.Popen, init_args: {args: [touch, '{}/hacked']}}]", "Popen"),
        ("stages: [{class_path: vera_lite.dataset.layers.CheckLayers, init_args: {psnr: 1}}]", "psnr"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_named(tmp_path, clips, capsys, stages, names):
    path = tmp_path / "bad.yaml"
    path.write_text(stages.replace("{}/hacked", str(tmp_path / "hacked")))
    line = refused(capsys, "data", "run", clips, "--out", tmp_path / "out", "--config", path, *HERE)
    assert names in line and not (tmp_path / "hacked").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", ["[]", "{}", "nothing", '{"file": "none.mkv"}', '{"file": 3}'])
def test_a_damaged_list_of_clips_is_named_with_its_line(tmp_path, clips, config, capsys, line):
    path = clips / "clips.jsonl"
    path.write_text(path.read_text() + line + "\n")
    out = ["--out", tmp_path / "out", "--config", config]
    assert "line 5" in refused(capsys, "data", "run", clips, *out, *HERE)


def test_a_store_made_in_python_says_that_it_cannot_be_retried_here(tmp_path, capsys):
    store, _ = store_of(tmp_path / "store", 1)
    pipeline = store.folder / "pipeline.json"
    pipeline.write_text(json.dumps(json.loads(pipeline.read_text()) | {"configuration": None}))
    assert main(["data", "retry", str(store.folder), *HERE]) == 0  # nothing to do
    pipeline.write_text("{}")
    assert "damaged" in refused(capsys, "data", "audit", store.folder)


def test_the_sheet_shows_at_most_forty_and_the_layers_of_each(tmp_path):
    store, _ = store_of(tmp_path / "store", 9)
    few, many = (Image.open(contact_sheet(store, [CheckLayers()], most=n)).copy() for n in (2, 9))
    assert many.width > 1.5 * few.width and many.height > few.height
    assert len(many.convert("RGB").getcolors(2**20)) > 500  # pictures, not a blank page
    nothing = Image.open(contact_sheet(store, [CheckLayers(least_psnr=99.0)]))
    assert nothing.height < few.height


def test_stages_are_built_with_their_arguments():
    (stage,) = build_stages(
        {"stages": [{"class_path": "vera_lite.dataset.layers.CheckLayers", "init_args": {"least_psnr": 3}}]}
    )
    assert isinstance(stage, CheckLayers) and stage.config == {"least_psnr": 3}
    with pytest.raises(UserError):
        build_stages(None)
