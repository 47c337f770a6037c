"""The preview of a result, played by a browser."""

import io

import numpy as np
from PIL import Image
from test_carried_over import PROMPT, film

from vera_lite.cli import main


def test_the_preview_plays_in_its_shape_and_colours(page, tmp_path):
    """Pixels twice as wide as high, and sound: the browser shows what the source is."""

    def wide(stream):
        stream.codec_context.sample_aspect_ratio = 2

    source = film(tmp_path / "a.mp4", "aac", prepare=wide)
    assert (
        main(["edit", str(source), "--prompt", PROMPT, "--out", str(tmp_path / "out"), "--steps", "1"]) == 0
    )
    html = "<body style='margin:0;background:white'><video id=v muted src='out/final.mp4'></video>"
    (tmp_path / "page.html").write_text(html)
    page.goto((tmp_path / "page.html").as_uri())
    video = page.locator("#v")
    page.wait_for_function("v.readyState >= 2 || v.error")
    assert video.evaluate("v => [v.error, v.videoWidth, v.videoHeight]") == [None, 128, 48]
    assert abs(video.evaluate("v => v.duration") - 20 * 1001 / 30000) < 0.05
    video.evaluate("v => v.play().then(() => new Promise(done => v.onended = done))")
    assert video.evaluate("v => v.webkitAudioDecodedByteCount") > 0
    shown = np.asarray(Image.open(io.BytesIO(video.screenshot())).convert("RGB"))
    assert shown.shape[:2] == (48, 128) and shown.std() > 20
