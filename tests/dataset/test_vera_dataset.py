"""Vera's public layout: found under any prefix, what is missing is said, polarity is checked."""

import json
from dataclasses import replace

import pytest
import torch
from finished_samples import store_of

from vera_lite.apps import data
from vera_lite.apps.train import export as export_model
from vera_lite.apps.train import train
from vera_lite.dataset.audit import finished
from vera_lite.dataset.layers import CheckLayers, layer_files
from vera_lite.dataset.stage import LAYERS
from vera_lite.dataset.store import Store
from vera_lite.dataset.vera_layout import COLUMNS, PUBLISHED, read_vera, whole_files, write_vera
from vera_lite.errors import UserError
from vera_lite.media.clip import LayeredClip, to_float
from vera_lite.media.video import read_grey, read_video
from vera_lite.pipelines import VeraPipeline
from vera_lite.training.layered import LayeredVideoData, read_layers, words_of

OBJECT_LIST = "vera-train-set/49-frames/synthetic-obj-add.jsonl"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return store_of(tmp_path_factory.mktemp("stored") / "store", 12)[0]


@pytest.fixture(scope="module")
def exported(stored, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "set"
    assert data.export(stored.folder, out) == 0
    return out


def write_rows(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def row_of(prefix, name):
    return {"edit_instruction": "add it"} | {c: f"{prefix}{name}/{c}.mp4" for c in COLUMNS.values()}


def test_the_published_counts_are_the_known_ones():
    frames = "49-frames", "81-frames"
    by_frames = {f: sum(n for name, n in PUBLISHED.items() if name.startswith(f)) for f in frames}
    assert by_frames == {"49-frames": 11_996, "81-frames": 6_005}
    assert 81 * by_frames["81-frames"] == 486_405  # the "486K frames" of the paper's abstract
    assert whole_files() == 90_015  # what others count in a copy of it


@pytest.mark.parametrize("prefix", ["", "vera-train-set/49-frames/", "49-frames/", "train-set/49-frames/"])
@pytest.mark.parametrize("inside", [False, True])
def test_files_are_found_whatever_the_prefix(tmp_path, prefix, inside):
    """Paths relative to the list or to the root; and with a first folder that the copy does not have."""
    write_rows(tmp_path / OBJECT_LIST, row_of(prefix, "a"), row_of(prefix, "b"))
    place = (tmp_path / OBJECT_LIST).parent
    for column in COLUMNS.values():
        (place / "a").mkdir(exist_ok=True)
        (place / "a" / f"{column}.mp4").write_bytes(b"x")
    found = read_vera(tmp_path / "vera-train-set" if inside else tmp_path)
    there, missing = (row.files for row in found.rows)
    assert {path.name for path in there.values()} == {f"{column}.mp4" for column in COLUMNS.values()}
    assert missing == {} and found.rows[1].facts["absent"] == sorted(COLUMNS)
    assert found.count() == (6, 11) and found.rows[0].category == "object_addition"
    sentences = found.missing
    assert "49-frames/synthetic-obj-add has 2 of 4848 rows" in sentences
    assert "49-frames/synthetic-obj-add lacks 5 of 10 videos" in sentences
    assert "81-frames/synthetic-bg-change is not there (2497 rows)" in sentences and len(sentences) == 11


def test_nothing_is_missing_of_the_whole_set(tmp_path, monkeypatch):
    small = dict.fromkeys(PUBLISHED, 2)
    monkeypatch.setattr("vera_lite.dataset.vera_layout.PUBLISHED", small)
    for name, count in small.items():
        frames, _, stem = name.partition("/")
        rows = [row_of("", f"{stem}/{i}") for i in range(count)]
        write_rows(tmp_path / f"{name}.jsonl", *rows)
        for row in rows:
            for column in COLUMNS.values():
                path = tmp_path / frames / row[column]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    found = read_vera(tmp_path)
    assert found.missing == [] and found.is_published
    assert found.count() == (whole_files(), whole_files()) == (110, 110)
    path.unlink()
    assert len(read_vera(tmp_path).missing) == 1 and read_vera(tmp_path).count()[0] == 109


def row_to_test(number, **changes):
    row = {"video_id": "a", "prompt_id": number, "edit_type": "obj_add", "subject_type": None}
    row |= {"prompt": f"add {number}", "target_caption": "it", "source_caption": "no", "alpha_path": None}
    return row | {"input_path": "vera-test-set/obj-add/input/a.mp4", "mask_path": "mask/a.mp4"} | changes


def test_the_test_lists_are_read_too(tmp_path):
    """69 + 72 rows of fewer videos; the copy's folders are called otherwise than the rows say."""
    replaced = {"edit_type": "background_replace", "subject_type": "people", "alpha_path": "alpha/a.mp4"}
    lists = {"obj-add": ({}, 72), "bg-change": (replaced, 69)}
    for name, (changes, count) in lists.items():
        place = tmp_path / "test-set" / name
        write_rows(place / f"{name}.jsonl", *(row_to_test(n, **changes) for n in range(count)))
        (place / "input").mkdir()
        (place / "input" / "a.mp4").write_bytes(b"x")
    found = read_vera(tmp_path)
    assert len(found.tests) == 141 and found.rows == []
    assert found.missing == ["test/bg-change lacks 138 of 207 videos", "test/obj-add lacks 72 of 144 videos"]
    added = [row for row in found.tests if row.category == "object_addition"]
    assert [row.instruction for row in added] == [f"add {n}" for n in range(72)]
    assert added[3].key == "test/obj-add/3" and added[3].facts["absent"] == ["mask"]
    assert added[3].files == {"source": tmp_path / "test-set/obj-add/input/a.mp4"}
    assert added[3].facts["source_caption"] == "no" and "licence" not in added[3].facts
    with pytest.raises(UserError, match="141 test rows"):
        data.import_vera(tmp_path, tmp_path / "out")
    write_rows(place / "bg-change.jsonl", row_to_test(0))
    with pytest.raises(UserError, match="line 1"):
        read_vera(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        '{"edit_rgb_path": "a.mp4"}',
        json.dumps(row_of("/etc/", "a")),
        json.dumps(row_of("../../", "a")),
        json.dumps(row_of("", "a") | {"mask_path": None}),
    ],
)
def test_a_damaged_row_is_named(tmp_path, line):
    path = tmp_path / OBJECT_LIST
    write_rows(path, row_of("", "a"))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match="line 2"):
        read_vera(tmp_path)


def test_a_folder_without_rows_is_refused(tmp_path):
    write_rows(tmp_path / "other.jsonl", {"text": "x"})
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError):
            read_vera(folder)
        with pytest.raises(UserError):
            layer_files(folder)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"mask": lambda clip: 1 - clip.mask}, "mask_polarity"),
        ({"alpha": lambda clip: 1 - clip.alpha}, "mask_polarity"),
        ({"composite": lambda clip: clip.source}, "no_recomposition"),
        ({"edit": lambda clip: clip.edit.flip(1)}, "no_recomposition"),
        ({"mask": lambda clip: clip.mask[:5]}, "sizes_differ"),
        ({"alpha": lambda clip: clip.alpha[..., :16]}, "sizes_differ"),
    ],
)
def test_layers_that_do_not_belong_together_are_rejected(tmp_path, changed, reason):
    _, ledger = store_of(tmp_path / "store", 4, **changed)
    assert ledger.reasons == {("check_layers", "rejected", reason): 4}


def test_recomposition_is_measured_and_the_floor_of_a_lossless_matte_is_zero(stored):
    samples = finished(stored, [CheckLayers()])
    assert {s.category for s in samples} == {"object_addition", "background_change"} and len(samples) == 12
    assert all(s.facts["alpha_floor"] == 0 for s in samples)
    added = [s.facts["recomposition_psnr"] for s in samples if s.category == "object_addition"]
    assert min(added) > 50  # 8 bits per layer


def test_the_floor_is_what_a_codec_leaves_far_from_the_object(tmp_path):
    def noisy(clip):
        alpha = clip.alpha.clone()
        alpha[:, :, :4, :4] = alpha[:, :, :4, :4].clamp_min(5 / 255)
        return alpha

    store, _ = store_of(tmp_path / "store", 12, alpha=noisy)
    floors = {s.facts["alpha_floor"] for s in finished(store, [CheckLayers()])}
    assert round(5 / 255, 4) in floors


def test_an_export_is_read_back(stored, exported, tmp_path, capsys):
    samples = layer_files(exported)
    assert len(samples) == 12 and {s.facts["licence"] for s in samples} == {"MIT"}
    assert read_vera(exported).count() == (62, 62) and not read_vera(exported).is_published
    assert {s.instruction for s in samples} == {s.instruction for s in layer_files(stored.folder)}
    before = {p: p.stat().st_mtime_ns for p in exported.rglob("*.mp4")}
    assert data.export(stored.folder, exported) == 0  # continues, and finds nothing to do
    assert before == {p: p.stat().st_mtime_ns for p in exported.rglob("*.mp4")}
    for _ in range(2):
        assert data.import_vera(exported, tmp_path / "imported", workers=0, progress=False) == 0
    said = capsys.readouterr().out
    assert "62 of 62 files" in said and "Recomposition: median" in said and "missing" not in said
    store = Store(tmp_path / "imported")
    assert len(finished(store, [CheckLayers()])) == 12 == len(store.input_rows)


def test_what_the_layout_cannot_hold_is_refused(stored, tmp_path):
    sample = replace(layer_files(stored.folder)[0], category="style")
    with pytest.raises(UserError, match="style"):
        list(write_vera([sample], tmp_path / "out", "own"))
    with pytest.raises(UserError, match="no name for a set"):
        data.export(stored.folder, tmp_path / "out", name="../own")
    assert not (tmp_path / "out").exists()


def test_clips_are_exported_lossless(stored, tmp_path):
    assert data.export(stored.folder, tmp_path / "clips", layout="clips") == 0
    for sample in layer_files(stored.folder)[:2]:
        clip = LayeredClip.load(tmp_path / "clips" / sample.key[:16])
        assert clip.instruction == sample.instruction and clip.attributes["licence"] == "MIT"
        assert torch.equal(clip.alpha, to_float(read_grey(sample.files["alpha"])))
        assert torch.equal(clip.edit, to_float(read_video(sample.files["edit"])[0]))


# --- training on it -----------------------------------------------------------------------------------------


def test_words_are_ranked_by_how_often_they_come():
    found = words_of(["add a dog", "add a red cat", "Add the dog!"], 3)
    assert found["phrases"] == ["add", "a", "dog"] and set(found["fillers"]) == {"red", "cat", "the"}
    assert found["max_phrases"] == 4
    padded = words_of(["add"], 3)["phrases"]
    assert padded[0] == "add" and len(set(padded)) == 3


def test_batches_come_from_a_store_and_from_the_public_layout(stored, exported, tmp_path):
    batches = {}
    for name, folder in (("store", stored.folder), ("layout", exported)):
        made = LayeredVideoData(str(folder), str(tmp_path), batch_size=4, text_dim=40)
        made.setup()
        batches[name] = made.train[0]
        assert len(made.samples["validation"]) == 1 and len(made.samples["train"]) == 11
        assert made.validation[0]["source"].shape == (1, 48, 3, 8, 8)
    assert batches["store"]["source"].shape == (4, 48, 3, 8, 8)
    assert set(batches["store"]) == {*LAYERS, "text", "step"} and batches["store"]["text"].shape[-1] == 40
    assert batches["store"]["text"].sum() > 0


def test_latents_are_those_of_the_files(stored, tmp_path):
    made = LayeredVideoData(str(stored.folder), str(tmp_path), batch_size=11, text_dim=40)
    made.setup()
    batch, order = made.train[0], made.train.indices(0)
    sample = made.samples["train"][order[0]]
    layers = read_layers(sample, made.clip_size)
    for name in LAYERS:
        expected = made.codec.encode(layers[name][None])[0]
        assert torch.allclose(batch[name][0], expected, atol=2e-3, rtol=2e-3), name  # kept as halves
    assert set(layers["mask"].unique().tolist()) <= {0.0, 1.0}


def test_a_changed_dataset_is_encoded_anew(stored, exported, tmp_path):
    for folder in (stored.folder, exported, stored.folder):
        LayeredVideoData(str(folder), str(tmp_path), batch_size=2).prepare_data()
    assert len(list(tmp_path.iterdir())) == 4  # training and validation of two datasets


@pytest.mark.slow
def test_fit_learns_from_a_dataset_and_the_result_is_a_pipeline(stored, tmp_path):
    config = json.loads(json.dumps(CONFIG))
    config["data"]["init_args"] |= {"folder": str(stored.folder), "cache_dir": str(tmp_path / "cache")}
    config["trainer"]["default_root_dir"] = str(tmp_path)
    config["trainer"]["callbacks"][0]["init_args"]["dirpath"] = str(tmp_path)
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(config))
    train(["fit", "--config", str(path)])
    export_model(tmp_path / "last.ckpt", tmp_path / "model")
    pipe = VeraPipeline.from_pretrained(tmp_path / "model")
    sample = layer_files(stored.folder)[0]
    video = read_layers(sample, pipe.clip_size)["source"]
    assert torch.isfinite(pipe(video, sample.instruction, steps=1).final).all()


CONFIG = {
    "model": {
        "class_path": "vera_lite.training.EditingModule",
        "init_args": {
            "system": {
                "class_path": "vera_lite.systems.Vera",
                "init_args": {
                    "config": {
                        "backbone": {
                            "patch_size": [1, 2, 2],
                            "num_attention_heads": 2,
                            "attention_head_dim": 16,
                            "in_channels": 48,
                            "out_channels": 48,
                            "text_dim": 40,
                            "freq_dim": 16,
                            "ffn_dim": 32,
                            "num_layers": 1,
                            "summed_text": True,
                        }
                    }
                },
            }
        },
    },
    "data": {
        "class_path": "vera_lite.training.LayeredVideoData",
        "init_args": {"text_dim": 40, "batch_size": 2},
    },
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 2,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [
            {
                "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                "init_args": {"save_last": True, "save_top_k": 0, "every_n_train_steps": 2},
            }
        ],
    },
}
