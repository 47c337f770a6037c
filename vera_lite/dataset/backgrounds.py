"""Backgrounds for a subject: photographs that come with scikit-image, and procedural ones."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from vera_lite.dataset.checks import Rejected
from vera_lite.dataset.plate import register

#: Photographs in the wheel of scikit-image, all of them CC0 or in the public domain, and their captions.
PHOTOS = {
    "coffee": "a cup of coffee on a wooden table",
    "rocket": "a rocket at its launch pad at dusk",
    "chelsea": "the face of a tabby cat",
    "grass": "green grass",
    "gravel": "grey gravel",
    "brick": "a brick wall",
    "hubble_deep_field": "distant galaxies in the night sky",
}
#: Colours of the upper and the lower half of procedural scenes.
SCENES = {
    "a hazy blue sky above a green hill": ((0.55, 0.72, 0.93), (0.33, 0.5, 0.22)),
    "an orange evening sky above a dark sea": ((0.95, 0.6, 0.35), (0.12, 0.16, 0.3)),
    "a bright sky above a snow field": ((0.72, 0.82, 0.94), (0.93, 0.95, 0.98)),
    "a red desert under a pale sky": ((0.86, 0.86, 0.82), (0.72, 0.42, 0.25)),
}


def new_background(key: str, video: Tensor) -> tuple[Tensor, str]:
    """A background chosen by a key, seen by a camera that moves as the clip's.

    Args:
        key: hexadecimal digits.
        video: the clip, (T, 3, H, W) in [0, 1].

    Returns:
        (T, 3, H, W) in [0, 1], and a caption.
    """
    names = (*PHOTOS, *SCENES)
    name = names[int(key[:8], 16) % len(names)]
    height, width = video.shape[-2:]
    wide = (round(1.5 * height), round(1.5 * width))  # room for the camera
    picture = _photo(name, wide) if name in PHOTOS else _scene(int(key[8:16], 16), *SCENES[name], wide)
    try:
        cameras = register(video)
    except Rejected:  # then the new camera stands still
        cameras = np.tile(np.eye(3), (len(video), 1, 1))
    centre = np.array([[1, 0, -(wide[1] - width) / 2], [0, 1, -(wide[0] - height) / 2], [0, 0, 1]])
    views = [
        cv2.warpPerspective(
            picture, np.linalg.inv(camera) @ centre, (width, height), borderMode=cv2.BORDER_REFLECT_101
        )
        for camera in cameras
    ]
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).clamp(0, 1), PHOTOS.get(name, name)


def _photo(name: str, size: tuple[int, int]) -> np.ndarray:
    """The middle of a photograph, (H, W, 3) in [0, 1]."""
    from skimage import data

    photo = np.float32(getattr(data, name)()) / 255
    photo = photo if photo.ndim == 3 else np.dstack([photo] * 3)
    scale = max(size[0] / photo.shape[0], size[1] / photo.shape[1])
    sides = [max(side, round(n * scale)) for side, n in zip(size, photo.shape, strict=False)]
    photo = cv2.resize(photo, sides[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (sides[0] - size[0]) // 2, (sides[1] - size[1]) // 2
    return np.ascontiguousarray(photo[top : top + size[0], left : left + size[1]])


def _scene(seed: int, above: tuple, below: tuple, size: tuple[int, int]) -> np.ndarray:
    """Two colours that meet at a rough horizon, with noise at all scales, (H, W, 3) in [0, 1]."""
    random = np.random.Generator(np.random.Philox(key=[18, seed]))
    noise = np.zeros(size, np.float32)
    for octave in range(6):
        cells = random.standard_normal((3 * 2**octave, 5 * 2**octave), dtype=np.float32)
        noise += 0.6**octave * cv2.resize(cells, size[::-1], interpolation=cv2.INTER_CUBIC)
    row = np.linspace(0, 1, size[0], dtype=np.float32)[:, None]
    ground = 1 / (1 + np.exp(-60 * (row - 0.62 - 0.03 * noise.mean(0))))[..., None]
    sky = np.float32(above) + 0.25 * (row[..., None] - 0.4)
    return np.clip(sky + ground * (np.float32(below) - sky) + 0.035 * noise[..., None], 0, 1).astype(
        np.float32
    )
