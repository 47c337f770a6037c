"""Video files: bit-exact round trips, whole files or none, and refusal of what would mislead."""

import io
import socketserver
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vera_lite.errors import UserError
from vera_lite.media.video import (
    VideoReader,
    check_video,
    frame_rate,
    read_grey,
    read_video,
)
from vera_lite.media.video_writer import VideoWriter, write_video

REAL_CLIP = Path(__file__).parents[2] / "shared" / "clips" / "01_dog.mp4"


def noise(frames, channels=3, height=32, width=48):
    generator = torch.Generator().manual_seed(frames)
    shape = (frames, channels, height, width)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def encode(path, times, time_base, codec="libx264", rate=30, options=None, rotation=None, sound=0, **kwargs):
    """Write noise at the given times with FFmpeg directly, and optionally seconds of sound."""
    with av.open(str(path), "w", **kwargs) as container:
        stream = container.add_stream(codec, rate=Fraction(rate), options=options or {})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.time_base = time_base
        if rotation:
            stream.set_display_rotation(**rotation)
        if sound:
            audio = container.add_stream("aac", rate=8000, layout="mono")
        for frame, time in zip(noise(len(times)), times, strict=True):
            picture = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).numpy().copy(), "rgb24")
            picture.pts, picture.time_base = time, time_base
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
        if sound:
            samples = np.zeros((1, int(8000 * sound)), np.float32)
            tone = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
            tone.rate = 8000
            container.mux(audio.encode(tone))
            container.mux(audio.encode(None))
    return path


def mux_jpegs(path, times, time_base, sizes):
    """Put pictures into a container as they are, which lets no encoder correct the times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj420p"
        for time, size in zip(times, sizes, strict=True):
            file = io.BytesIO()
            Image.new("RGB", size).save(file, "jpeg")
            packet = av.Packet(file.getvalue())
            packet.stream, packet.time_base = stream, time_base
            packet.pts = packet.dts = time
            packet.is_keyframe = True
            container.mux(packet)
    return path


def cut(path, keep):
    """Keep that share of the file's bytes."""
    data = path.read_bytes()
    short = path.with_name("cut_" + path.name)
    short.write_bytes(data[: int(len(data) * keep)])
    return short


# Writing what can be read back ------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    frames=st.integers(1, 4),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
)
def test_lossless_round_trip_is_bit_exact(tmp_path_factory, frames, channels, height, width):
    path = tmp_path_factory.mktemp("lossless") / "clip.mkv"
    written = noise(frames, channels, height, width)
    write_video(path, written, 8, "lossless")
    if channels == 1:
        assert torch.equal(read_grey(path), written)
        assert torch.equal(read_video(path)[0], written.expand(-1, 3, -1, -1))
    else:
        read, info = read_video(path)
        assert torch.equal(read, written)
        assert (info.frames, info.height, info.width) == (frames, height, width)
        assert (info.fps, info.duration) == (8, frames / 8)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 2), (40, 1), (15, 16), (65, 127)])
def test_lossless_takes_every_size(tmp_path, size):
    for channels, read in ((1, read_grey), (3, lambda path: read_video(path)[0])):
        written = noise(2, channels, *size)
        write_video(tmp_path / "clip.mkv", written, 8, "lossless")
        assert torch.equal(read(tmp_path / "clip.mkv"), written)


@pytest.mark.parametrize(("kind", "suffix"), [("lossless", ".mkv"), ("preview", ".mp4")])
def test_equal_frames_give_equal_files(tmp_path, kind, suffix):
    for name in ("a", "b"):
        write_video(tmp_path / (name + suffix), noise(3), 8, kind)
    assert (tmp_path / ("a" + suffix)).read_bytes() == (tmp_path / ("b" + suffix)).read_bytes()


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 100, 50)])
def test_preview_keeps_colours_and_says_how_they_are_coded(tmp_path, colour):
    path = tmp_path / "clip.mp4"
    written = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(4, 3, 32, 32)
    write_video(path, written, 24, "preview")
    assert (read_video(path)[0].int() - written.int()).abs().max() <= 4
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.colorspace) == ("h264", "yuv420p", 1)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays before it is loaded whole


@pytest.mark.parametrize("channels", [1, 3])
def test_preview_repeats_the_edge_of_odd_sizes(tmp_path, channels):
    written = torch.full((3, channels, 17, 33), 90, dtype=torch.uint8)
    write_video(tmp_path / "clip.mp4", written, 8, "preview")
    read, info = read_video(tmp_path / "clip.mp4")
    assert (info.height, info.width) == (18, 34)
    assert (read.int() - 90).abs().max() <= 3


@pytest.mark.parametrize(
    ("fps", "exact"),
    [(29.97002997002997, Fraction(30000, 1001)), (Fraction(24000, 1001), Fraction(24000, 1001))]
    + [(8, Fraction(8)), (12.5, Fraction(25, 2)), (0.01, Fraction(1, 100))],
)
def test_frame_rates_are_exact(fps, exact):
    assert frame_rate(fps) == exact


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1000, "8", None])
def test_impossible_frame_rates_are_refused(fps):
    with pytest.raises(UserError, match="frame rate"):
        frame_rate(fps)


# A whole file or none ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"old")
    kind = "lossless" if path.suffix == ".mkv" else "preview"
    with pytest.raises(ZeroDivisionError), VideoWriter(path, 8, kind) as writer:
        for frame in noise(60):
            writer.write(frame)
        assert len(list(tmp_path.iterdir())) == 2  # the new one grows beside the old one
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def frames():
        yield noise(1)[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "clip.mkv", frames(), 8, "lossless")
    assert not list(tmp_path.iterdir())


def test_a_finished_write_replaces_the_old_file(tmp_path):
    path = tmp_path / "clip.mkv"
    path.write_bytes(b"old")
    write_video(path, noise(2), 8, "lossless")
    assert torch.equal(read_video(path)[0], noise(2))
    assert list(tmp_path.iterdir()) == [path]


def test_writers_refuse_what_they_cannot_write(tmp_path):
    refused = {
        "uint8": lambda: write_video(tmp_path / "a.mkv", noise(1) / 255, 8, "lossless"),
        "frame 1": lambda: write_video(tmp_path / "a.mkv", [noise(1)[0], noise(1, 1)[0]], 8, "lossless"),
        "no frame was written": lambda: write_video(tmp_path / "a.mkv", [], 8, "lossless"),
        "'best'": lambda: VideoWriter(tmp_path / "a.mkv", 8, "best"),
        "a.mp4": lambda: VideoWriter(tmp_path / "a.mp4", 8, "lossless"),
        "'preview'": lambda: VideoWriter(tmp_path / "a.mkv", 8, "preview"),
        "nowhere": lambda: VideoWriter(tmp_path / "nowhere" / "a.mkv", 8, "lossless"),
        "frame rate": lambda: VideoWriter(tmp_path / "a.mkv", 0, "lossless"),
    }
    for reason, write in refused.items():
        with pytest.raises(ValueError, match=reason):
            write()
    assert not list(tmp_path.iterdir())


# Honest files are taken -------------------------------------------------------------------------

RATES = [24, 25, 30, Fraction(30000, 1001), 60]
CONTAINERS = {
    "mp4": "libx264",
    "mkv": "libx264",
    "webm": "libvpx-vp9",
    "avi": "mpeg4",
    "ts": "libx264",
}


@pytest.mark.parametrize("fps", RATES, ids=str)
@pytest.mark.parametrize("container", CONTAINERS)
def test_constant_rates_are_taken(tmp_path, container, fps):
    options = {"deadline": "realtime", "cpu-used": "8"} if container == "webm" else {"bf": "2"}
    path = encode(
        tmp_path / f"clip.{container}",
        range(36),
        1 / Fraction(fps),
        CONTAINERS[container],
        fps,
        options,
    )
    info = check_video(path)
    assert (info.fps, info.frames, info.width, info.height) == (fps, 36, 48, 32)
    assert sum(1 for _ in VideoReader(path)) == 36


@pytest.mark.parametrize("fps", [24, 30, Fraction(30000, 1001), 60], ids=str)
def test_rounding_survives_a_change_of_container(tmp_path, fps):
    """From Matroska's milliseconds to the fine ticks of mp4, and started late."""
    times = [1000 + round(i * 1000 / fps) for i in range(60)]
    path = encode(tmp_path / "clip.mp4", times, Fraction(1, 1000), rate=fps)
    info = check_video(path)
    assert (info.frames, float(info.fps)) == (60, pytest.approx(float(fps), rel=1e-3))


@pytest.mark.parametrize("milliseconds", [100, 80])
def test_a_wrong_announced_rate_is_not_believed(tmp_path, milliseconds):
    times = range(0, 10 * milliseconds, milliseconds)  # in a stream that announces 30 fps
    path = mux_jpegs(tmp_path / "clip.mkv", times, Fraction(1, 1000), [(48, 32)] * 10)
    assert check_video(path).fps == Fraction(1000, milliseconds)


def test_frames_that_an_edit_list_hides_are_not_missed(tmp_path):
    path = encode(
        tmp_path / "clip.mp4",
        [i - 12 for i in range(40)],
        Fraction(1, 30),
        options={"g": "100", "sc_threshold": "0"},
        container_options={"avoid_negative_ts": "disabled", "movflags": "faststart"},
    )
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 40
        # Pictures from the hidden keyframe on must be decoded, but are not shown.
        assert sum(packet.is_discard for packet in container.demux(video=0)) == 12
    assert len(read_video(path)[0]) == check_video(path).frames == 28


def test_sound_may_be_longer_or_shorter_than_the_pictures(tmp_path):
    for seconds in (0.3, 2.5):
        for suffix in ("mp4", "mkv"):
            name = tmp_path / f"clip.{suffix}"
            path = encode(name, range(30), Fraction(1, 30), sound=seconds)
            assert len(read_video(path)[0]) == 30


@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, 1), (180, 2), (-90, 3)])
def test_rotated_videos_come_upright(tmp_path, degrees, turns):
    plain, _ = read_video(encode(tmp_path / "plain.mp4", range(3), Fraction(1, 30)))
    path = encode(tmp_path / "clip.mp4", range(3), Fraction(1, 30), rotation={"degrees": degrees or 360})
    read, info = read_video(path)
    assert torch.equal(read, plain.rot90(turns, (2, 3)))
    assert (info.rotation, (info.height, info.width)) == (90 * turns, read.shape[2:])
    assert read_grey(path).shape[2:] == read.shape[2:]


def test_titles_in_unknown_encodings_do_no_harm(tmp_path):
    path = tmp_path / "clip.mkv"
    write_video(path, noise(2), 8, "lossless")
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"DUR\xff\xfeION"))
    assert len(read_video(path)[0]) == 2


def test_reader_can_be_read_again(tmp_path):
    write_video(tmp_path / "clip.mkv", noise(5), 8, "lossless")
    reader = VideoReader(tmp_path / "clip.mkv")
    assert len(reader) == 5
    assert torch.equal(next(iter(reader)), noise(5)[0])
    assert torch.equal(torch.stack(list(reader)), noise(5))


@pytest.mark.skipif(not REAL_CLIP.exists(), reason="the real clip is not here")
def test_a_real_clip_is_taken():
    info = check_video(REAL_CLIP)
    assert (info.width, info.height, info.frames) == (1280, 720, 289)
    assert info.fps == Fraction(30000, 1001)
    assert next(iter(VideoReader(REAL_CLIP))).shape == (3, 720, 1280)


# Misleading files are refused -------------------------------------------------------------------


@pytest.mark.parametrize("container", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize(
    "times",
    [
        [0, 1, 2, 3, 4, 6, 7, 8, 9, 10],
        [0, 2, 3, 4, 5, 6, 7, 8, 9, 10],
        [0, 1, 2, 3, 4, 6, 8, 10, 12, 14],
    ],
    ids=["dropped", "dropped first", "slows down"],
)
def test_variable_rates_are_refused(tmp_path, container, times):
    codec = "mpeg4" if container == "avi" else "libx264"
    path = encode(tmp_path / f"a  clip.{container}", times, Fraction(1, 30), codec)
    with pytest.raises(UserError, match=r"rate.*ffmpeg -i '.*a  clip.*' -vf fps=\d+ "):
        check_video(path)
    with pytest.raises(UserError, match="rate"):
        VideoReader(path)


@pytest.mark.parametrize(
    "times",
    [
        [0, 33, 86, 100, 133, 171, 200, 233, 270, 300],
        [33 * i for i in range(60)] + [33 * 59 + 34 * i for i in range(1, 60)],
        [0, 33, 33, 67, 100],
        [0, 0, 0],
    ],
    ids=["jitter", "drift", "same time twice", "no time"],
)
def test_uneven_milliseconds_are_refused(tmp_path, times):
    path = mux_jpegs(tmp_path / "clip.mkv", times, Fraction(1, 1000), [(48, 32)] * len(times))
    with pytest.raises(UserError, match="rate"):
        check_video(path)


def broken_file(folder, kind):
    """A whole file of 40 frames, that the test then breaks."""
    ticks = Fraction(1, 30)
    if kind == "lossless":
        path = folder / "clip.mkv"
        write_video(path, noise(40), 30, "lossless")
        return path
    if kind == "mp4, index first":
        options = {"container_options": {"movflags": "faststart"}}
    elif kind == "mp4 in fragments":
        options = {"container_options": {"movflags": "frag_keyframe+empty_moov"}}
    else:
        options = {"sound": 2.0} if "sound" in kind else {}
    codec = "libvpx-vp9" if "webm" in kind else "libx264"
    return encode(folder / f"clip.{kind.split()[0].strip(',')}", range(40), ticks, codec, **options)


KINDS = ["lossless", "mkv", "mkv with sound", "webm", "mp4", "mp4, index first"]


@pytest.mark.parametrize("kind", [*KINDS, "mp4 in fragments"])
def test_files_cut_short_are_refused_before_decoding(tmp_path, kind):
    path = broken_file(tmp_path, kind)
    assert check_video(path).frames == 40
    for keep in (0.02, 0.3, 0.6, 0.9, 0.98):
        with pytest.raises(UserError, match="cut short"):
            check_video(cut(path, keep))


def test_a_cut_between_two_packets_is_refused(tmp_path):
    path = broken_file(tmp_path, "mp4, index first")
    with av.open(str(path)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    for start in (starts[-1], starts[1]):
        path.write_bytes(path.read_bytes()[:start])
        with pytest.raises(UserError, match="cut short"):
            check_video(path)


@pytest.mark.parametrize("sound", [0, 3.0])
def test_cuts_show_without_statistics_tags(tmp_path, sound):
    """Not every program writes the length of each stream into a Matroska file."""
    path = encode(tmp_path / "clip.mkv", range(60), Fraction(1, 30), sound=sound)
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"DURATIOX"))
    assert check_video(path).frames == 60
    for keep in (0.3, 0.6) if sound else (0.3, 0.6, 0.9, 0.98):
        with pytest.raises(UserError, match="cut short"):
            check_video(cut(path, keep))


def test_a_live_recording_announces_no_length(tmp_path):
    path = encode(
        tmp_path / "clip.webm",
        range(20),
        Fraction(1, 30),
        "libvpx",
        container_options={"live": "1"},
    )
    assert check_video(path).frames == 20


@pytest.mark.parametrize("kind", KINDS)
def test_no_cut_passes_unnoticed(tmp_path, kind):
    """A file with a cut at any place is refused, or reads the same."""
    path = broken_file(tmp_path, kind)
    whole, _ = read_video(path)
    for keep in np.linspace(0, 1, 81):
        try:
            read, _ = read_video(cut(path, keep))
        except UserError:
            continue
        assert torch.equal(read, whole), keep
    assert keep == 1 and torch.equal(read, whole)


def test_a_cut_that_only_decoding_shows_is_refused_where_it_is(tmp_path):
    refused = 0
    for share in (0.58, 0.6, 0.62, 0.64):  # a cut may fall between two frames, where nothing shows it
        path = cut(encode(tmp_path / "clip.ts", range(40), Fraction(1, 30)), share)
        check_video(path)  # a transport stream announces no length
        seen = 0
        try:
            for _ in VideoReader(path):
                seen += 1
        except UserError as error:
            refused += "clip" in str(error)
        assert seen > 10  # the frames before the damage were handed out: reading is streaming
    assert refused


@pytest.mark.parametrize("frames", [3, 7])
def test_a_file_that_changes_after_the_check_is_refused(tmp_path, frames):
    write_video(tmp_path / "clip.mkv", noise(5), 8, "lossless")
    reader = VideoReader(tmp_path / "clip.mkv")
    write_video(tmp_path / "clip.mkv", noise(frames), 8, "lossless")
    seen = 0
    with pytest.raises(UserError, match="clip.mkv"):
        for _ in reader:
            seen += 1
    assert seen == min(frames, 5)


def test_a_change_of_size_is_refused(tmp_path):
    path = mux_jpegs(tmp_path / "clip.mkv", range(8), Fraction(1, 10), [(48, 32)] * 5 + [(64, 32)] * 3)
    with pytest.raises(UserError, match="frame 5 .*64x32"):
        read_video(path)


def test_mirrored_videos_are_refused(tmp_path):
    path = encode(tmp_path / "clip.mp4", range(3), Fraction(1, 30), rotation={"degrees": 0, "hflip": True})
    with pytest.raises(UserError, match="mirrored"):
        check_video(path)


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(noise(4).numpy().tobytes())
    (tmp_path / "notes.txt").write_text("not a video\n" * 50)
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.jpg")
    for name in ("song.m4a", "song with a cover.m4a"):
        with av.open(str(tmp_path / name), "w", format="mp4") as container:
            audio = container.add_stream("aac", rate=8000, layout="mono")
            if "cover" in name:
                cover = container.add_stream("mjpeg", rate=1)
                cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
                cover.disposition = Disposition.attached_pic
                container.start_encoding()
                packet = av.Packet((tmp_path / "picture.jpg").read_bytes())
                packet.stream, packet.pts, packet.dts = cover, 0, 0
                container.mux(packet)
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
            tone.rate = 8000
            container.mux(audio.encode(tone))
            container.mux(audio.encode(None))
    with av.open(str(tmp_path / "no_frames.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        container.start_encoding()
    encode(tmp_path / "no_times.h264", range(5), Fraction(1, 30))
    refused = {
        "missing.mp4": "no file",
        ".": "folder",
        "empty.mp4": "cannot be read",
        "noise.mp4": "cannot be read",
        "notes.txt": "text",
        "picture.png": "picture",
        "picture.jpg": "picture",
        "song.m4a": "no video",
        "song with a cover.m4a": "no video",
        "no_frames.avi": "frames",
        "no_times.h264": "timestamps",
    }
    for name, reason in refused.items():
        for read in (check_video, VideoReader, read_video, read_grey):
            with pytest.raises(UserError, match=reason) as caught:
                read(tmp_path / name)
            assert "\n" not in str(caught.value)


def test_a_playlist_cannot_reach_the_network(tmp_path):
    callers = []

    class Recorder(socketserver.BaseRequestHandler):
        def handle(self):
            callers.append(self.client_address)

    with socketserver.TCPServer(("127.0.0.1", 0), Recorder) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/a.ts"
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n"
        (tmp_path / "list.m3u8").write_text(playlist)
        with pytest.raises(UserError):
            check_video(tmp_path / "list.m3u8")
        server.shutdown()
    assert not callers
