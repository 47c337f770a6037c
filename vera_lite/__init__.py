"""Four 2026 video-editing diffusion papers, rebuilt small enough to watch each idea work."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data(name: str) -> Path:
    """A file or folder that comes with the project beside the code, wherever Python was started.

    Args:
        name: as in the repository: below ``data_samples`` (clips) or ``benchmarks/results`` (measurements and
            small models). A wheel holds both; a clone has them anyway.

    Raises:
        FileNotFoundError: there is no such file.
    """
    for root in (_PACKAGE.parent, _PACKAGE / "shipped"):  # a clone, a wheel
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(f"vera-lite has no {name}: look into data_samples and benchmarks/results.")
