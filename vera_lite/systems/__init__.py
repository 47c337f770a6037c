"""One file a paper."""

from dataclasses import asdict

from torch import nn

from vera_lite.backbone import WanConfig
from vera_lite.errors import UserError
from vera_lite.objectives import FlowMatching
from vera_lite.systems.regeneration import Regeneration, RegenerationConfig
from vera_lite.systems.vera import Vera, VeraConfig

SYSTEMS = {"vera": (Vera, VeraConfig), "regeneration": (Regeneration, RegenerationConfig)}


def describe_system(system: nn.Module) -> dict:
    """What :func:`build_system` needs to make this system anew, as JSON can hold it; no weights."""
    # isinstance, not type: FSDP2 gives a sharded module a subclass of its own.
    kind = next(name for name, (build, _) in SYSTEMS.items() if isinstance(system, build))
    return {"system": kind, "config": asdict(system.config)}


def build_system(saved: dict) -> nn.Module:
    """The inverse of :func:`describe_system`, with fresh weights.

    Raises:
        UserError: the kind is unknown or a field of the config is.
    """
    if saved.get("system") not in SYSTEMS:
        raise UserError(f"unknown system {saved.get('system')!r}; known: {', '.join(SYSTEMS)}.")
    build, config_type = SYSTEMS[saved["system"]]
    config = dict(saved["config"])
    try:
        backbone = {**config["backbone"], "patch_size": tuple(config["backbone"]["patch_size"])}
        config |= {
            "backbone": WanConfig(**backbone),
            "objective": FlowMatching(**config["objective"]),
        }
        return build(config_type(**config))
    except (KeyError, TypeError) as error:
        raise UserError(f"this {saved['system']} config does not fit this version: {error}.") from error


__all__ = [
    "SYSTEMS",
    "Regeneration",
    "RegenerationConfig",
    "Vera",
    "VeraConfig",
    "build_system",
    "describe_system",
]
