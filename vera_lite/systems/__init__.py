"""One file per paper."""

from dataclasses import asdict

from torch import nn

from vera_lite.backbone import CogVideoXConfig, WanConfig
from vera_lite.diffusion.ddpm import Diffusion
from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.errors import UserError
from vera_lite.systems.baselines.layers_in_time import LayersInTime
from vera_lite.systems.baselines.regeneration import Regeneration, RegenerationConfig
from vera_lite.systems.gencompositor import GenCompositor, GenCompositorConfig
from vera_lite.systems.mive import MiVE, MiVEConfig
from vera_lite.systems.rvedit import RVEDiT, RVEDiTConfig
from vera_lite.systems.vera import Vera, VeraConfig

SYSTEMS = {
    "vera": (Vera, VeraConfig, WanConfig),
    "layers_in_time": (LayersInTime, RegenerationConfig, WanConfig),  # a kind of Regeneration, so before it
    "regeneration": (Regeneration, RegenerationConfig, WanConfig),
    "gencompositor": (GenCompositor, GenCompositorConfig, CogVideoXConfig),
    "rvedit": (RVEDiT, RVEDiTConfig, WanConfig),
    "mive": (MiVE, MiVEConfig, WanConfig),
}


def describe_system(system: nn.Module) -> dict:
    """A system without its weights as plain values for JSON, from which :func:`build_system` makes it."""
    # isinstance, not type: FSDP2 gives a sharded module a subclass of its own.
    kind = next(name for name, (build, *_) in SYSTEMS.items() if isinstance(system, build))
    return {"system": kind, "config": asdict(system.config)}


def build_system(saved: dict) -> nn.Module:
    """The system that :func:`describe_system` described, with fresh weights.

    Raises:
        UserError: an unknown system, or a config that this version does not have.
    """
    if saved.get("system") not in SYSTEMS:
        raise UserError(f"unknown system {saved.get('system')!r}; known: {', '.join(SYSTEMS)}.")
    build, config_type, backbone_type = SYSTEMS[saved["system"]]
    try:
        config = _with_tuples(saved["config"])
        classic = config["objective"]["prediction"] in ("epsilon", "v_prediction")
        config |= {
            "backbone": backbone_type(**_with_tuples(config["backbone"])),
            "objective": (Diffusion if classic else FlowMatching)(**config["objective"]),
        }
        return build(config_type(**config))
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise UserError(
            f"this {saved['system']} config does not fit this version ({reason}): export the model again."
        ) from error


def _with_tuples(saved: dict) -> dict:
    """JSON turns tuples into lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}


__all__ = [
    "SYSTEMS",
    "GenCompositor",
    "GenCompositorConfig",
    "LayersInTime",
    "MiVE",
    "MiVEConfig",
    "RVEDiT",
    "RVEDiTConfig",
    "Regeneration",
    "RegenerationConfig",
    "Vera",
    "VeraConfig",
    "build_system",
    "describe_system",
]
