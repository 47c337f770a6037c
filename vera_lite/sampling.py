"""Denoising: diffusers' flow-match Euler scheduler, and a callback that shows every step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from vera_lite.errors import UserError
from vera_lite.objectives import Prediction, to_velocity


@dataclass(frozen=True)
class DenoisingState:
    """What a callback sees after a step.

    Attributes:
        step: 0 .. steps - 1.
        sigma: noise level that the network saw.
        latents: x at the next noise level.
        x_0: the network's present guess of the clean latents.
    """

    step: int
    sigma: float
    latents: Tensor
    x_0: Tensor


@torch.no_grad()
def denoise(
    predict: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    steps: int = 12,
    shift: float = 3.0,
    prediction: Prediction = "velocity",
    callback: Callable[[DenoisingState], None] | None = None,
) -> Tensor:
    """Walk from noise (sigma = 1) to a sample (sigma = 0).

    Args:
        predict: (x_sigma, sigma (B,)) -> the network's output, of x_sigma's shape.
        noise: (..., B, C, t, h, w).
        steps: network calls.
        shift: spends more steps at high noise, as in training.
        prediction: what ``predict`` returns.
        callback: called after every step; it may look, not touch.

    Returns:
        Clean latents of noise's shape.

    Raises:
        UserError: steps < 1.
    """
    if steps < 1:
        raise UserError(f"a sample needs at least one step, got {steps}.")
    # 1. The noise levels.
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    batch = noise.shape[-5]
    x = noise
    for step, timestep in enumerate(scheduler.timesteps):
        # 2. Where does the network think this goes?
        sigma = scheduler.sigmas[step]
        levels = sigma.to(x.device).expand(batch)
        # In x's own precision: the scheduler would carry on in that of a bfloat16 network.
        velocity = to_velocity(predict(x, levels).to(x.dtype), x, levels, prediction)
        # 3. One Euler step along it.
        x_0 = x - sigma * velocity
        x = scheduler.step(velocity, timestep, x).prev_sample
        if callback is not None:
            callback(DenoisingState(step, float(sigma), x, x_0))
    return x
