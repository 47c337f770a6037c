"""`vera-lite layers` and `vera-lite edit --subject` on files."""

import json

import pytest
import torch

from vera_lite.apps.layers import Layers
from vera_lite.apps.outline import OutlinedDrawing
from vera_lite.cli import main
from vera_lite.dataset.checks import Rejected
from vera_lite.errors import Notice
from vera_lite.media.clip import composite, to_float, to_uint8
from vera_lite.media.video import read_grey, read_video
from vera_lite.media.video_writer import write_video
from vera_lite.pipelines.base import Drawing, EditResult
from vera_lite.toy.truth import truth_clip

SIZE = (136, 240)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """clip.mkv, a still camera and a car; sways.mkv, a red thing that never leaves its place."""
    folder = tmp_path_factory.mktemp("clips")
    clip = truth_clip(6, 17, SIZE)
    write_video(folder / "clip.mkv", to_uint8(clip.composite.clone()), 16, "lossless")
    sways = clip.source.clone()
    for t in range(13):
        x = 100 + 2 * (t % 3)
        sways[t, :, 40:90, x : x + 30] = torch.tensor([0.9, 0.2, 0.1])[:, None, None]
    write_video(folder / "sways.mkv", to_uint8(sways[:13]), 16, "lossless")
    return folder, clip


def test_layers_put_the_clip_together_again(folder, tmp_path):
    folder, clip = folder
    assert main(["layers", str(folder / "clip.mkv"), "--subject", "moving", "--out", str(tmp_path)]) == 0
    names = {"sheet.png", "plate.mkv", "edit.mkv", "alpha.mkv", "metrics.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    edit, plate = (to_float(read_video(tmp_path / f"{name}.mkv")[0]) for name in ("edit", "plate"))
    alpha = to_float(read_grey(tmp_path / "alpha.mkv"))
    source = to_float(read_video(folder / "clip.mkv")[0])
    assert (plate - clip.source).abs().mean() < 0.01
    assert (alpha - clip.alpha).abs().mean() < 0.4 * clip.alpha.mean()
    assert (composite(edit, alpha, plate) - source).abs().mean() < 0.01
    # Away from the subject the plate is the clip itself.
    far = torch.nn.functional.max_pool2d(clip.alpha, 41, 1, 20) == 0
    assert torch.equal(plate[far.expand_as(plate)], source[far.expand_as(source)])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["never_seen"] == 0
    assert metrics["recomposition_mean_squared_error"] < 1e-3


def test_what_is_never_seen_leaves_no_plate(folder, tmp_path):
    with pytest.warns(Notice, match="plate.mkv"):
        paths = Layers(folder[0] / "sways.mkv", tmp_path, "96,36,42,58", width=2).run()
    assert "plate.mkv" not in {path.name for path in paths}
    assert {"edit.mkv", "alpha.mkv"} <= {path.name for path in paths}


def test_an_edit_keeps_its_subject_bit_for_bit_up_to_its_fine_outline(folder, tmp_path):
    """The model draws 9 frames of 32x32; the outline is that of 17 frames of 240x136."""
    folder, clip = folder
    arguments = ["edit", str(folder / "clip.mkv"), "--prompt", "change the background to green clouds"]
    arguments += ["--subject", "moving", "--out", str(tmp_path), "--steps", "2"]
    assert main(arguments) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["subject"] == "moving"
    assert metrics["outside_equals_source"]
    final, source = (to_float(read_video(p)[0]) for p in (tmp_path / "final.mkv", folder / "clip.mkv"))
    edit, alpha = to_float(read_video(tmp_path / "edit.mkv")[0]), to_float(read_grey(tmp_path / "alpha.mkv"))
    inside = erode(clip.alpha > 0.95, 4)
    assert inside.mean() > 0.01
    assert (alpha[inside > 0] == 0).all()
    assert torch.equal(final[inside.expand_as(final) > 0], source[inside.expand_as(source) > 0])
    # The outline is the car's. A pixel of the model is 7x4 here, and every second of its frames is old.
    truth = 1 - clip.alpha
    assert (alpha > 0.5)[erode(clip.alpha == 0, 5) > 0].float().mean() > 0.98
    rim = (erode(clip.alpha == 0, 5) == 0) & (inside == 0)
    assert (alpha - truth)[rim].abs().mean() < 0.06
    # The layers are the result.
    assert (composite(edit, alpha, source) - final).abs().max() < 2.1 / 255


def erode(where, pixels):
    """1 where a boolean (T, 1, H, W) holds so many pixels around, too."""
    return 1 - torch.nn.functional.max_pool2d(1 - where.float(), 2 * pixels + 1, 1, pixels)


class Told:
    """Reads layers as Vera does."""

    def read(self, layers, source, sampling):
        return EditResult(source, source, layers["edit"], layers["alpha"])


@pytest.mark.parametrize("alpha_on_subject", [0.0, 1.0])
def test_the_side_that_the_model_leaves_alone_stays(alpha_on_subject):
    """Its own outline is four pixels off, and soft; that of the result is the mask's."""
    masks = torch.zeros(3, 1, 64, 64)
    masks[..., 16:48, 16:48] = 1
    coarse = torch.full((3, 1, 16, 16), 1 - alpha_on_subject)
    coarse[..., 4:12, 4:12] = alpha_on_subject
    coarse[..., 3, 3:13] = coarse[..., 12, 3:13] = 0.5
    source = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * masks
    layers = {"edit": torch.ones(3, 3, 16, 16), "alpha": coarse}
    drawing = OutlinedDrawing(Drawing(Told(), layers, None, 3, (64, 64)), masks)
    assert drawing.keeps_subject == (alpha_on_subject == 0)
    for t in range(3):
        result = drawing.frame(t, source[t])
        edited = masks[t] if alpha_on_subject else 1 - masks[t]
        deep = erode(edited[None] == 1, 4)[0]
        assert result.alpha[deep > 0].min() > 0.999
        untouched = erode(edited[None] == 0, 4)[0].expand_as(source[t]) > 0
        assert untouched.any()
        assert torch.equal(result.final[untouched], source[t][untouched])
    nobody = OutlinedDrawing(Drawing(Told(), layers, None, 3, (64, 64)), masks * 0)
    assert nobody.keeps_subject
    assert torch.isfinite(nobody.frame(0, source[0]).final).all()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--subject", "a dog"], "sam2:WORDS"),
        (["--subject", "0,0,500,10"], "240x136"),
        (["--subject", "moving", "--width", "99"], "--width"),
        (["--subject", "sam2:a car"], "--download"),
    ],
)
def test_mistakes_are_one_sentence_before_any_work(folder, tmp_path, capsys, monkeypatch, options, named):
    monkeypatch.setattr("vera_lite.apps.layers.revision", lambda name: None)  # no model is on this machine
    out = tmp_path / "out"
    assert main(["layers", str(folder[0] / "clip.mkv"), "--out", str(out), *options]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_what_cannot_be_found_is_one_sentence(folder, tmp_path, capsys):
    still = tmp_path / "still.mkv"
    write_video(still, torch.full((5, 3, 48, 64), 90, dtype=torch.uint8), 8, "lossless")
    out = tmp_path / "out"
    assert main(["layers", str(still), "--subject", "moving", "--out", str(out)]) == 2
    assert "subject" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(Rejected):
        Layers(still, out, "moving").run()


def test_mask_and_subject_exclude_each_other(folder, tmp_path, capsys):
    clip = str(folder[0] / "clip.mkv")
    arguments = ["edit", clip, "--prompt", "add a red ring", "--subject", "person", "--mask", clip]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "--subject" in capsys.readouterr().err
    assert main([*arguments[:6], "--system", "mive", "--out", str(tmp_path / "out")]) == 2
    assert "--subject" in capsys.readouterr().err


def test_a_missing_package_is_named(folder, tmp_path, capsys, monkeypatch):
    import vera_lite.apps.layers as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert main(["layers", str(folder[0] / "clip.mkv"), "--out", str(tmp_path / "out")]) == 2
    assert "vera-lite[dataset]" in capsys.readouterr().err
