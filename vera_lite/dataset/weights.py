"""Weights of large models, which are not part of the package: where they are, and which ones they are."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vera_lite.errors import UserError

#: SAM 2, and the detector that turns words into its box. Both are under Apache-2.0.
SEGMENTER, DETECTOR = "facebook/sam2.1-hiera-small", "IDEA-Research/grounding-dino-tiny"


def revision(name: str) -> str | None:
    """Which weights a model has: sha256 of a folder's files, or the commit of a model of the Hub; None if it
    is not on this machine."""
    folder = Path(name)
    if folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors"))
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "model_index.json"):
        path = try_to_load_from_cache(name, file)
        if isinstance(path, str):
            return Path(path).parent.name
    return None


def not_loaded(name: str, kind: str, download: bool) -> UserError:
    """The sentence for a model that cannot be loaded."""
    hint = "" if download or Path(name).is_dir() else " Fetch it with --download (in Python download=True)."
    return UserError(f"cannot load {name!r} as {kind}.{hint}")


def load(model_class, processor_class, name: str, download: bool = False, device: str = "cpu"):
    """A model of transformers and its processor.

    Args:
        model_class, processor_class: of transformers.
        name: a folder, or a name on the Hub.
        download: fetch what is not on this machine; without it nothing touches the network.
        device: where the model goes.

    Raises:
        UserError: they are not on this machine, or of another kind.
    """
    try:
        processor = processor_class.from_pretrained(name, local_files_only=not download)
        model = model_class.from_pretrained(name, local_files_only=not download, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise not_loaded(name, model_class.__name__, download) from error
    return model.to(device), processor
