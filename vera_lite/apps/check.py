"""`vera-lite check`: one OK or FAIL line per requirement; paste it into bug reports."""

import os
import platform
import shutil
import sys
from importlib import metadata

from packaging.requirements import Requirement


def check() -> int:
    """Print the lines; returns 0 if all are OK, else 1."""
    results = [*_packages(), _python(), _encoders(), _disk(), _model()]
    for good, text in results:
        print(f"{'OK  ' if good else 'FAIL'}  {text}")
    return 0 if all(good for good, _ in results) else 1


def _python() -> tuple[bool, str]:
    here = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return (3, 11) <= sys.version_info[:2] <= (3, 13), f"Python {here}, wanted 3.11 to 3.13"


def _packages() -> list[tuple[bool, str]]:
    lines = []
    for text in metadata.requires("vera-lite") or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            lines.append((False, f"{wanted.name} is missing, wanted {wanted.specifier}"))
            continue
        good = wanted.specifier.contains(version, prereleases=True)
        lines.append((good, f"{wanted.name} {version}, wanted {wanted.specifier or 'any'}"))
    return lines


def _encoders() -> tuple[bool, str]:
    import av

    missing = [name for name in ("ffv1", "libx264") if name not in av.codecs_available]
    return (
        not missing,
        f"video codecs ffv1, libx264{' are missing: ' + ', '.join(missing) if missing else ''}",
    )


def _disk() -> tuple[bool, str]:
    free = shutil.disk_usage(os.getcwd()).free / 1e9
    return free > 1, f"{free:.0f} GB free on disk here, wanted 1"


def _model() -> tuple[bool, str]:
    import torch

    from vera_lite.pipelines import VeraPipeline

    where = "CUDA is there too" if torch.cuda.is_available() else "no CUDA, none needed"
    try:
        pipe = VeraPipeline.from_pretrained()
        frames, height, width = pipe.clip_size
        result = pipe(torch.full((frames, 3, height, width), 0.5), "add a red ring", steps=1)
        good = bool(torch.isfinite(result.final).all())
    except Exception as error:  # any error is a FAIL line
        return False, f"the shipped model does not run: {error}"
    return good, f"the shipped model edits a clip on {torch.get_num_threads()} threads ({where})"
