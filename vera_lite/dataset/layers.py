"""Finished samples: the check that their five layers belong together, and where to find them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vera_lite.dataset.audit import finished
from vera_lite.dataset.run import recorded_stages
from vera_lite.dataset.stage import KINDS, LAYERS, LayerFiles, Ok, Reject, Sample
from vera_lite.dataset.store import Store
from vera_lite.dataset.vera_layout import is_vera, read_vera
from vera_lite.errors import UserError

#: Where alpha stays below ``_NEAR_ZERO`` for ``_ROOM`` pixels around, a matte means nothing but 0.
_NEAR_ZERO, _ROOM = 0.1, 8


class CheckLayers:
    """Checks size, polarity and recomposition of ``source``, ``edit``, ``alpha``, ``composite``, ``mask``.

    Adds the facts ``recomposition_psnr`` in dB, of ``alpha * edit + (1 - alpha) * source`` against
    ``composite``, and ``alpha_floor``, the largest alpha far from everything that the matte shows. It is 0 in
    a lossless matte; in an MP4 it says which values no longer mean anything.

    Args:
        least_psnr: in dB. At the soft edges of a replaced background the old one shines through, so
            even exact layers do not give the composite back exactly.
    """

    name, version = "check_layers", "1"

    def __init__(self, least_psnr: float = 25.0):
        self.config = {"least_psnr": least_psnr}

    def __call__(self, sample: Sample, inputs: Callable[[str], Path], out: Path) -> Ok | Reject:
        import torch
        from torch.nn import functional as F

        from vera_lite.media.clip import composite, to_float
        from vera_lite.media.video import VideoReader

        missing = [name for name in LAYERS if name not in sample.files]
        if missing:
            return Reject("layers_missing", {"layers": missing})
        readers = {name: VideoReader(inputs(name), kind) for name, kind in KINDS.items()}
        shapes = {name: [len(r), r.info.height, r.info.width] for name, r in readers.items()}
        if len(set(map(tuple, shapes.values()))) > 1:
            return Reject("sizes_differ", {"sizes": shapes})
        error = agreement = values = floor = 0.0
        for frames in zip(*readers.values(), strict=True):
            layer = dict(zip(readers, map(to_float, frames), strict=True))
            made = composite(layer["edit"], layer["alpha"], layer["source"])
            error += float((made - layer["composite"]).square().sum())
            agreement += float(((2 * layer["mask"] - 1) * (2 * layer["alpha"] - 1)).sum())
            values += made.numel()
            around = F.max_pool2d(layer["alpha"], (2 * _ROOM + 1, 1), 1, (_ROOM, 0))
            around = F.max_pool2d(around, (1, 2 * _ROOM + 1), 1, (0, _ROOM))
            floor = max(floor, float(layer["alpha"].where(around < _NEAR_ZERO, 0).max()))
        psnr = min(100.0, -10 * float(torch.tensor(error / values).clamp_min(1e-10).log10()))
        facts = {"recomposition_psnr": round(psnr, 2), "alpha_floor": round(floor, 4)}
        if (agreement < 0) != (sample.category == "background_change"):
            return Reject("mask_polarity", facts)
        if psnr < self.config["least_psnr"]:
            return Reject("no_recomposition", facts)
        size = dict(zip(("frames", "height", "width"), shapes["source"], strict=True))
        return Ok(replace(sample, facts=sample.facts | facts | size))


def layer_files(folder: str | Path) -> list[LayerFiles]:
    """The finished samples of a store, or of a folder in the layout of Vera's public dataset.

    Samples without all five layers are left out; of a store so are those that some stage has not kept.

    Raises:
        UserError: the folder is neither, or holds no finished sample.
    """
    folder = Path(folder)
    if (folder / "journal").is_dir():
        store = Store(folder)
        samples = [
            LayerFiles(
                sample.key,
                sample.category,
                sample.facts["instruction"],
                {name: store.path(sample.files[name]) for name in LAYERS},
                {name: value for name, value in sample.facts.items() if name != "instruction"},
            )
            for sample in finished(store, recorded_stages(store)[0])
            if set(LAYERS) <= set(sample.files) and "instruction" in sample.facts
        ]
    elif folder.is_dir() and is_vera(folder):
        samples = [row for row in read_vera(folder).rows if "absent" not in row.facts]
    else:
        raise UserError(f"{folder} is no dataset: neither a store nor a folder of Vera's layout.")
    if not samples:
        raise UserError(f"{folder} holds no finished sample with its five layers and its instruction.")
    return samples
