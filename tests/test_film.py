"""Clips play in step, with their own pixels."""

import io

import numpy as np
import torch
from PIL import Image

from vera_lite import viz
from vera_lite.film import film


def test_a_film_plays_its_clips_in_step_with_every_pixel_as_it_is():
    clips = {name: torch.rand(5, channels, 3, 4) for name, channels in {"colour": 3, "grey": 1}.items()}
    played = film(clips, "title", fps=10, side=0.5)  # 40 of 80 pixels an inch: each pixel becomes 10 x 10
    assert played._repr_png_() == played.png
    with Image.open(io.BytesIO(played.png)) as animation:
        assert animation.n_frames == 1 + 5  # the first is for what cannot play it
        pictures = []
        for frame in range(animation.n_frames):
            animation.seek(frame)
            pictures.append(np.asarray(animation.convert("RGB")).astype(int))
        assert animation.info["duration"] == 100
    assert (pictures[0] == pictures[1 + 2]).all()
    tall, wide = 30, 40
    top = pictures[0].shape[0] - 8 - 8 - tall
    for t, picture in enumerate(pictures[1:]):
        for i, clip in enumerate(clips.values()):
            left = 8 + i * (wide + 8)
            found = picture[top : top + tall : 10, left : left + wide : 10]
            assert np.abs(found / 255 - viz.image(clip[t])).max() < 1 / 255
    bars = [(picture[-6] == (0, 114, 178)).all(-1).sum() for picture in pictures[1:]]
    assert bars == sorted(set(bars))  # the bar grows
