"""Denoising: from noise to a sample, step by step, with a callback that sees every step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from vera_lite.diffusion.ddpm import Diffusion
from vera_lite.diffusion.flow_matching import Prediction, to_velocity
from vera_lite.errors import UserError

Predict = Callable[[Tensor, Tensor], Tensor]
_Walk = Iterator[tuple[Tensor, Tensor, Tensor]]  # of each step: sigma (B,), x, x_0


@dataclass(frozen=True)
class DenoisingState:
    """What a callback sees after a step."""

    step: int  #: 0 .. steps - 1.
    sigma: float  #: noise level that the network saw.
    latents: Tensor  #: x at the next noise level.
    x_0: Tensor  #: the network's current guess of the clean latents.


@torch.no_grad()
def denoise(
    predict: Predict,
    noise: Tensor,
    steps: int,
    shift: float = 1.0,
    prediction: Prediction | Literal["epsilon", "v_prediction"] = "velocity",
    callback: Callable[[DenoisingState], None] | None = None,
) -> Tensor:
    """Walk from noise (sigma = 1) to a sample (sigma = 0).

    Args:
        predict: (x_sigma, sigma (B,)) -> the network's output, of x_sigma's shape.
        noise: (..., B, C, t, h, w).
        steps: network calls.
        shift: above 1 spends more steps at high noise, as in training; flow matching only.
        prediction: what ``predict`` returns: "velocity" and "x_0" of
            :class:`~vera_lite.diffusion.flow_matching.FlowMatching`, walked by Euler's method; "epsilon" and
            "v_prediction" of :class:`~vera_lite.diffusion.ddpm.Diffusion`, walked by deterministic DDIM
            (arXiv 2010.02502) from t = 999 on ("trailing").
        callback: called after every step; it must not change the tensors.

    Returns:
        Clean latents of noise's shape.

    Raises:
        UserError: fewer than 1 step, or with diffusion more than 1000.
    """
    if steps < 1:
        raise UserError(f"a sample needs at least one step, got {steps}.")
    if prediction in get_args(Prediction):
        walk = _euler(predict, noise, steps, shift, prediction)
    else:
        walk = _ddim(predict, noise, steps, Diffusion(prediction))
    for step, (sigma, x, x_0) in enumerate(walk):
        if callback is not None:
            callback(DenoisingState(step, float(sigma[0]), x, x_0))
    return x


def _euler(predict: Predict, x: Tensor, steps: int, shift: float, prediction: Prediction) -> _Walk:
    # 1. Noise levels, evenly spaced from 1 to 1 / steps, shifted towards noise; then 0.
    levels = torch.linspace(1, 1 / steps, steps)
    levels = torch.cat([shift * levels / (1 + (shift - 1) * levels), torch.zeros(1)]).to(x.device)
    for level, following in pairwise(levels):
        # 2. The network's velocity, in the precision of x.
        sigma = level.expand(x.shape[-5])
        velocity = to_velocity(predict(x, sigma).to(x.dtype), x, sigma, prediction)
        # 3. One Euler step along it; a step down to sigma = 0 would end at x_0.
        x_0 = x - level * velocity
        x = x + (following - level) * velocity
        yield sigma, x, x_0


def _ddim(predict: Predict, x: Tensor, steps: int, objective: Diffusion) -> _Walk:
    if steps > 1000:
        raise UserError(f"diffusion has 1000 steps to sample, not {steps}.")
    # diffusers' DDIM always steps by 1000 // steps, and so has other timesteps unless steps divides 1000.
    timesteps = [round(1000 * (steps - i) / steps) - 1 for i in range(steps)]
    levels = (torch.tensor(timesteps) / 1000).to(x.device)[:, None].expand(-1, x.shape[-5])
    for step, sigma in enumerate(levels):
        x_0 = objective.predict_x0(predict(x, sigma).to(x.dtype), x, sigma)
        # The same x_0 and the same noise, at the next level.
        signal = objective.alphas_cumprod(sigma)
        noise = (x - signal.sqrt() * x_0) / (1 - signal).sqrt()
        x = objective.add_noise(x_0, noise, levels[step + 1]) if step + 1 < steps else x_0
        yield sigma, x, x_0
