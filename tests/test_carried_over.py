"""What a result keeps of its source: colours, shape of the pixels, times, sound; upright pictures."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from corpus.bad_files import coded, encode, frames
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from vera_lite.apps.composite import read_trajectory
from vera_lite.apps.inputs import RESULT_FILES, check_out, read_picture
from vera_lite.cli import main
from vera_lite.errors import UserError
from vera_lite.media.files import UNFINISHED, replacing, replacing_set
from vera_lite.media.header import Colour, check_video
from vera_lite.media.video import VideoReader, read_video
from vera_lite.media.video_writer import VideoWriter, write_video
from vera_lite.pipelines.drawing import enlarge

RED = (200, 60, 40)
PROMPT = "add a red ring at the top left moving right"


def limited(matrix: int, colour=RED) -> list[int]:
    """Y, U and V in 16..235 and 16..240, by the equations of BT.601 and BT.709."""
    k_r, k_b = {1: (0.2126, 0.0722), 6: (0.299, 0.114)}[matrix]
    r, g, b = (v / 255 for v in colour)
    y = k_r * r + (1 - k_r - k_b) * g + k_b * b
    u, v = (b - y) / (2 - 2 * k_b), (r - y) / (2 - 2 * k_r)
    return [round(16 + 219 * y), round(128 + 224 * u), round(128 + 224 * v)]


def plain_colour(path: Path, size, yuv, tag: int | None = None, color_range: int = 0) -> Path:
    """A YUV video of one colour, its planes as given, tagged or not."""
    height, width = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.color_range = color_range
        if tag is not None:
            stream.codec_context.colorspace = tag
        for t in range(3):
            picture = av.VideoFrame(width, height, "yuv420p")
            for plane, value in zip(picture.planes, yuv, strict=True):
                plane.update(bytes([value]) * plane.buffer_size)
            picture.pts, picture.time_base = t, Fraction(1, 24)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("size", "matrix", "tag"),
    [((720, 1280), 1, None), ((96, 128), 6, None), ((96, 128), 1, 1), ((720, 1280), 6, 6)],
    ids=["HD without a tag", "SD without a tag", "SD with BT.709", "HD with BT.601"],
)
def test_colours_are_read_as_they_were_meant(tmp_path, size, matrix, tag):
    path = plain_colour(tmp_path / "a.mkv", size, limited(matrix), tag)
    video, info = read_video(path)
    assert info.colour.matrix == matrix
    assert (video - torch.tensor(RED, dtype=torch.int)[:, None, None]).abs().max() <= 1
    if matrix == 1:  # the case that was reported; BT.601 has no YUV that rounds to it
        assert torch.equal(video[0, :, 5, 5], torch.tensor(RED, dtype=torch.uint8))


@pytest.mark.parametrize("tags", [(1, 1, 1), (6, 6, 6), (5, 5, 6)], ids=str)
def test_the_preview_keeps_colours_and_their_tags(tmp_path, tags):
    matrix, primaries, transfer = tags
    source = encode(
        tmp_path / "a.mp4",
        range(4),
        prepare=coded(colorspace=matrix, color_primaries=primaries, color_trc=transfer, color_range=1),
    )
    info = check_video(source)
    assert info.colour == Colour(matrix, primaries, transfer)
    written = torch.tensor(RED, dtype=torch.uint8)[:, None, None].expand(3, 32, 48)
    with VideoWriter(tmp_path / "b.mp4", 24, "preview", info) as writer:
        for _ in range(4):
            writer.write(written)
    assert check_video(tmp_path / "b.mp4").colour == info.colour
    assert (read_video(tmp_path / "b.mp4")[0].int() - written.int()).abs().max() <= 2


@pytest.mark.parametrize(("code", "grey"), [(1, 214), (2, 200)], ids=["limited", "full"])
def test_the_range_of_brightness_counts(tmp_path, code, grey):
    path = plain_colour(tmp_path / "a.mkv", (32, 32), (200, 128, 128), 1, color_range=code)
    video, info = read_video(path)
    assert info.colour.full_range == (code == 2) and (video == grey).all()


def film(path: Path, sound: str | None = None, rate=Fraction(30000, 1001), prepare=lambda _s: None, count=20):
    """H.264, or FFV1 in Matroska, with a tone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        prepare(stream)
        audio = container.add_stream(sound, rate=48000, layout="mono") if sound else None
        for t, frame in enumerate(frames(count, 3, 48, 64)):
            picture = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).numpy().copy(), "rgb24")
            picture.pts, picture.time_base = t, 1 / rate
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
        if audio:
            time = np.arange(int(48000 * count / rate)) / 48000
            samples = 0.3 * np.sin(2 * np.pi * 440 * time)[None]
            form = "s16" if "pcm" in sound else "fltp"
            samples = (32767 * samples).astype(np.int16) if form == "s16" else samples.astype(np.float32)
            tone = av.AudioFrame.from_ndarray(samples, form, "mono")
            tone.rate = 48000
            container.mux(audio.encode(tone))
            container.mux(audio.encode(None))
    return path


def packets(path: Path) -> list[tuple[bytes, Fraction]]:
    """The first sound track, and when each packet is heard."""
    with av.open(str(path)) as container:
        return [(bytes(p), p.pts * p.time_base) for p in container.demux(audio=0) if p.size and p.pts >= 0]


def test_sound_rate_and_pixel_aspect_reach_the_preview(tmp_path, capsys):
    def wide(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(2)

    source = film(tmp_path / "a.mp4", "aac", prepare=wide)
    assert (
        main(["edit", str(source), "--prompt", PROMPT, "--out", str(tmp_path / "out"), "--steps", "1"]) == 0
    )
    final = tmp_path / "out" / "final.mp4"
    info = check_video(final)
    assert (info.fps, info.frames, info.pixel_aspect) == (Fraction(30000, 1001), 20, 2)
    assert info.sound == ("aac",) and packets(final) == [p for p in packets(source) if p[1] < info.duration]
    assert check_video(tmp_path / "out" / "final.mkv").fps == Fraction(30000, 1001)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    [said] = metrics["not_carried_over"]
    assert metrics["sound"] == ["aac"] and "2 as wide as high" in said


@pytest.mark.parametrize(("encoder", "name"), [("libmp3lame", "mp3"), ("libopus", "opus"), ("ac3", "ac3")])
def test_sound_of_other_kinds_is_copied(tmp_path, encoder, name):
    source = film(tmp_path / "a.mkv", encoder)
    info = check_video(source)
    with VideoWriter(tmp_path / "b.mp4", info.fps, "preview", info, source) as writer:
        for frame in VideoReader(source):
            writer.write(frame)
    heard = [data for data, _ in packets(tmp_path / "b.mp4")]
    assert check_video(tmp_path / "b.mp4").sound == info.sound == (name,)
    assert len(heard) > 10 and heard == [data for data, time in packets(source) if time < info.duration]


def test_a_turned_video_turns_its_pixels_too(tmp_path):
    def turned(stream):
        stream.set_display_rotation(90)
        stream.codec_context.sample_aspect_ratio = Fraction(2)

    info = check_video(film(tmp_path / "a.mp4", prepare=turned))
    assert (info.height, info.width, info.pixel_aspect) == (64, 48, Fraction(1, 2))


def test_what_is_not_carried_over_is_said(tmp_path, capsys):
    def interlaced(stream):
        stream.codec_context.options = {"x264-params": "tff=1"}
        stream.codec_context.flags |= av.codec.context.Flags.interlaced_dct

    source = film(tmp_path / "a.mkv", "pcm_s16le", prepare=interlaced)
    assert (
        main(["edit", str(source), "--prompt", PROMPT, "--out", str(tmp_path / "out"), "--steps", "1"]) == 0
    )
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vera-lite: ")]
    assert len(said) == 2 and "interlaced" in said[0] and "pcm_s16le" in said[1] and "ffmpeg" in said[1]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert len(metrics["not_carried_over"]) == 2 and metrics["sound"] == []
    deep = encode(tmp_path / "b.mkv", range(4), prepare=lambda s: setattr(s, "pix_fmt", "yuv420p10le"))
    assert "10 bits" in check_video(deep).notes[0]


# Ordinary files are taken ---------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.4, 0.55, 0.8, 1.1])
def test_a_cut_without_encoding_is_taken(tmp_path, seconds):
    """As by `ffmpeg -t SECONDS -c copy`, which ends in decoding order, not in the order of time."""
    source = encode(tmp_path / "a.mp4", range(60), options={"bf": "3", "b-pyramid": "normal"})
    with av.open(str(source)) as whole, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        stream = whole.streams.video[0]
        copy = cut.add_stream_from_template(stream)
        for packet in whole.demux(stream):
            if packet.dts is None or packet.dts * packet.time_base > seconds:
                break
            packet.stream = copy
            cut.mux(packet)
    reader = VideoReader(tmp_path / "cut.mp4")
    assert reader.info.fps == 30 and reader.info.left_out <= 3
    assert bool(reader.info.notes) == bool(reader.info.left_out)
    whole = [frame for _, frame in zip(range(len(reader)), VideoReader(source), strict=False)]
    assert torch.equal(torch.stack(list(reader)), torch.stack(whole))


@pytest.mark.parametrize("fps", [24, 30, 60])
def test_frames_that_are_a_little_early_or_late_are_taken(tmp_path, fps):
    late = np.random.default_rng(0).integers(-2, 3, 60)
    times = [round(1000 * t / fps) + 10 + int(d) for t, d in enumerate(late)]
    info = check_video(encode(tmp_path / "a.mkv", times, 1000))
    assert info.frames == 60 and float(info.fps) == pytest.approx(fps, rel=0.02)


def test_the_advice_names_the_rate_that_was_meant(tmp_path):
    times = [1001 * t for t in range(40) if t not in (7, 8, 20)]
    path = encode(tmp_path / "a.mp4", times, 30000)
    with pytest.raises(UserError, match="fps=30000/1001"):
        check_video(path)


def test_hdr_is_refused_with_the_line_that_tone_maps(tmp_path):
    path = encode(tmp_path / "a.mp4", range(3), prepare=coded(color_trc=16))
    with pytest.raises(UserError, match="HDR.*tonemap"):
        check_video(path)


# Pictures -------------------------------------------------------------------------------------------


def test_pictures_of_every_kind_are_read_as_they_are_seen(tmp_path):
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    eight = (ramp // 257).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "16.png")
    assert np.array_equal(read_picture(tmp_path / "16.png", "mask", "L")[0], eight)
    Image.fromarray(ramp).save(tmp_path / "16.tiff")
    assert np.array_equal(read_picture(tmp_path / "16.tiff", "reference"), np.stack([eight] * 3))
    one_bit = Image.fromarray(eight > 100)
    one_bit.save(tmp_path / "1.png")
    assert set(np.unique(read_picture(tmp_path / "1.png", "mask", "L"))) == {0, 255}
    red = Image.new("RGB", (5, 4), (255, 0, 0))
    red.convert("CMYK").save(tmp_path / "cmyk.tiff")
    assert read_picture(tmp_path / "cmyk.tiff", "reference")[:, 0, 0].tolist() == [255, 0, 0]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=0)
    assert read_picture(tmp_path / "p.png", "reference")[:, 0].T.tolist() == [[255] * 3, [200, 100, 50]]
    assert read_picture(tmp_path / "p.png", "mask", "L")[0, 0, 0] == 0


# Before the work ------------------------------------------------------------------------------------


def test_what_files_and_arguments_tell_is_said_before_torch_is_imported(tmp_path):
    clouds = Path(__file__).parents[1] / "data_samples" / "clouds.mkv"
    encode(tmp_path / "fast.mp4", range(20), rate=480)
    (tmp_path / "file").write_text("")
    (tmp_path / "model").mkdir()
    for name, text in (("pipeline.json", '{"system": "vera"}'), ("system.safetensors", "x" * 99)):
        (tmp_path / "model" / name).write_text(text)
    (tmp_path / "model" / "codec.safetensors").write_text("")
    edit = ["edit", str(clouds), "--prompt", PROMPT, "--out", str(tmp_path / "out")]
    wrong = [
        ["edit", str(tmp_path / "fast.mp4"), *edit[2:]],
        ["edit", str(tmp_path / "none.mp4"), *edit[2:]],
        [*edit[:-1], str(tmp_path / "file")],
        [*edit, "--mask", str(tmp_path / "file")],
        [*edit, "--guidance", "nan"],
        [*edit, "--seed", "-1"],
        [*edit, "--model", str(tmp_path / "model")],
        [*edit[:3], "", *edit[4:]],
        ["composite", str(clouds), "toy:red circle", "--path", "1,2,3", "--out", str(tmp_path / "out")],
        ["composite", str(clouds), str(clouds), "--path", "1,2 3,4", "--out", str(tmp_path / "out")],
    ]
    code = (
        f"import sys; from vera_lite.cli import main\nfor arguments in {wrong!r}:\n"
        "    assert main(arguments) == 2, arguments\n    assert 'torch' not in sys.modules, arguments\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == len(wrong)


def test_a_result_folder_is_replaced_as_a_set(tmp_path):
    out = tmp_path / "a" / "out"
    with replacing_set(out, ("one", "two", "facts")) as folder:
        for name in ("one", "two", "facts"):
            (folder / name).write_text("first")
    (out / "mine").write_text("mine")
    with pytest.raises(ZeroDivisionError), replacing_set(out, ("one", "two", "facts")) as folder:
        (folder / "one").write_text("second")
        raise ZeroDivisionError
    assert {p.name: p.read_text() for p in out.iterdir()} == {
        "one": "first", "two": "first", "facts": "first", "mine": "mine",
    }  # fmt: skip
    (out / UNFINISHED).mkdir()
    (out / UNFINISHED / "two").write_text("of a run that was killed")
    with replacing_set(out, ("one", "two", "facts")) as folder:
        (folder / "one").write_text("third")
    assert {p.name: p.read_text() for p in out.iterdir()} == {"one": "third", "mine": "mine"}
    with pytest.raises(ZeroDivisionError), replacing_set(tmp_path / "b" / "c", ("one",)):
        raise ZeroDivisionError
    assert not (tmp_path / "b").exists()


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    code = "import os, sys; from vera_lite.media.files import replacing\n"
    code += "with replacing(sys.argv[1]) as path: path.write_text('half'); os._exit(9)"
    command = [sys.executable, "-c", code, str(tmp_path / "one")]
    assert subprocess.run(command, check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    with replacing(tmp_path / "one") as path:
        path.write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_two_runs_do_not_write_to_one_folder_at_a_time(tmp_path):
    with replacing_set(tmp_path, ("one",)) as folder:
        with pytest.raises(UserError, match="another run"), replacing_set(tmp_path, ("one",)):
            pass
        (folder / "one").write_text("first")
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


# Properties -----------------------------------------------------------------------------------------

anything = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NAMES = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=40
)


@anything
@given(name=NAMES, inside=st.lists(NAMES.filter(lambda n: n not in (".", "..")), max_size=3))
@example(name=" ", inside=[])
@example(name="-", inside=["final.mp4"])
def test_no_input_inside_the_results_passes(tmp_path, name, inside):
    root = tmp_path / str(len(list(tmp_path.iterdir())))
    out = root / "out" / name
    if len(os.fsencode(name)) > 200 or name in (".", ".."):
        return
    source = Path(out, *inside, "video.mkv")
    if any(len(os.fsencode(part)) > 255 for part in source.parts):
        return
    source.parent.mkdir(parents=True)
    source.write_bytes(b"video")
    with pytest.raises(UserError, match="video.mkv"):
        check_out(out, source)
    assert check_out(root / "other", source) == root / "other"
    outside = root / "video.mkv"
    outside.write_bytes(b"video")
    assert check_out(out, outside) == out
    for link in (os.link, os.symlink):
        for file in RESULT_FILES[:2]:
            if (out / file).exists():
                continue
            link(outside, out / file)
            with pytest.raises(UserError, match="video.mkv"):
                check_out(out, outside)
            (out / file).unlink()


@anything
@given(path=st.text(max_size=40), scale=st.none() | st.text(max_size=20) | st.floats())
@example(path="1,2 3,4", scale="0.4,nan")
@example(path="٣,4", scale="1_0")
def test_a_path_and_a_scale_are_read_or_refused(path, scale):
    try:
        trajectory = read_trajectory(path, scale, None, (48, 64))
    except UserError as error:
        assert "\n" not in str(error)
        return
    positions, scales = trajectory.sample(5)
    assert ((positions >= 0) & (positions <= torch.tensor([63, 47]))).all()
    assert (scales > 0).all() and scales.isfinite().all()


@anything
@given(*(st.integers(1, 40) for _ in range(5)))
def test_enlarging_is_bicubic_interpolation(channels, height, width, rows, columns):
    small = torch.rand(channels, height, width, generator=torch.Generator().manual_seed(height))
    size = (height + rows, width + columns)
    expected = torch.nn.functional.interpolate(small[None], size, mode="bicubic")[0].clamp(0, 1)
    torch.testing.assert_close(enlarge(small, size), expected, atol=1e-5, rtol=0)
    assert (enlarge(torch.zeros_like(small), size) == 0).all()  # where nothing is drawn, nothing is


@anything
@given(
    order=st.lists(st.integers(0, 2), min_size=1, max_size=12), height=st.integers(1, 20), grey=st.booleans()
)
def test_pictures_that_repeat_are_written_whole(tmp_path, order, height, grey):
    """Equal pictures after each other are encoded once."""
    video = frames(3, 1 if grey else 3, height, 24)[order]
    write_video(tmp_path / "a.mkv", video, 8, "lossless")
    read, info = read_video(tmp_path / "a.mkv")
    assert torch.equal(read, video.expand(-1, 3, -1, -1)) and info.fps == 8
