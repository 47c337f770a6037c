"""Readings of a frozen vision-language model, computed once per clip and kept on disk.

The name of a clip's file is a digest of everything that the reading depends on: the model's weights, the
code, the settings, the pixels and the text. So a stale file is never read.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vera_lite.conditioning.vision_language import VisionLanguageModel
from vera_lite.media.clip import to_uint8
from vera_lite.media.files import replacing

Row = dict[str, Tensor]  # of one clip


class Readings:
    """A folder of readings, one memory-mapped safetensors file per clip; several processes may share it.

    Args:
        folder: made when it is needed.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._models: dict[int, str] = {}

    def __call__(
        self,
        vlm: VisionLanguageModel,
        how: Sequence,
        texts: Sequence[str],
        pixels: Sequence[Iterable[Tensor]],
        compute: Callable[[], list[Row]],
    ) -> list[Row]:
        """The readings of B clips.

        Args:
            vlm: the model, frozen.
            how: everything else that the readings depend on, including the functions that read.
            texts: B texts.
            pixels: the videos and images that the model sees of each clip: (..., 3, H, W) in [0, 1].
            compute: reads all B clips. If one reading is missing, all are computed: the other clips of a
                batch change the last bits of a reading, and a resumed training must find the same bits.
        """
        head = hashlib.sha256(f"{self._model(vlm)} {_described(how)}".encode())
        autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
        head.update(str((autocast, torch.get_autocast_dtype("cpu"))).encode())
        paths = []
        for text, seen in zip(texts, pixels, strict=True):
            digest = head.copy()
            digest.update(text.encode())
            for video in seen:
                digest.update(str(tuple(video.shape)).encode() + to_uint8(video).cpu().numpy().tobytes())
            name = digest.hexdigest()
            paths.append(self.folder / name[:2] / f"{name}.safetensors")
        if not all(path.is_file() for path in paths):
            with torch.no_grad():
                rows = compute()
            for path, row in zip(paths, rows, strict=True):
                if not path.is_file():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with replacing(path) as temporary:
                        save_file({name: t.contiguous() for name, t in row.items()}, temporary)
        return [load_file(path) for path in paths]

    def _model(self, vlm: VisionLanguageModel) -> str:
        """Digest of the model's weights, computed once per process: it takes seconds per gigabyte."""
        if id(vlm) not in self._models:
            digest = hashlib.sha256(version("transformers").encode())
            for name, tensor in vlm.model.state_dict().items():
                if tensor.numel():
                    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
                    digest.update(f"{name} {tensor.dtype}".encode() + raw.numpy().tobytes())
            self._models[id(vlm)] = digest.hexdigest()
        return self._models[id(vlm)]


def _described(how: Sequence) -> str:
    """Functions are described by the text of their module, so that changed code reads anew."""
    return repr([Path(inspect.getfile(x)).read_text() if callable(x) else x for x in how])


def padded(rows: Sequence[Tensor], axis: int = 0, left: bool = False, value: float = 0) -> Tensor:
    """Stack tensors of different lengths along ``axis``, padded with ``value``."""
    length = max(row.shape[axis] for row in rows)
    stacked = []
    for row in rows:
        missing = list(row.shape)
        missing[axis] = length - row.shape[axis]
        fill = row.new_full(missing, value)
        stacked.append(torch.cat([fill, row] if left else [row, fill], axis))
    return torch.stack(stacked)
