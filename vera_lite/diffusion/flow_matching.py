"""Flow matching (arXiv 2210.02747) in Wan's convention.

sigma = 1 is noise and 0 is clean; timestep = 1000 * sigma;

    x_sigma = (1 - sigma) * x_0 + sigma * noise          the straight path
    v       = d x_sigma / d sigma = noise - x_0          the velocity target
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vera_lite.diffusion.draws import StepRandom
from vera_lite.errors import check_choices

Prediction = Literal["velocity", "x_0"]


def add_noise(x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_sigma on the straight path, in float32; sigma (B,) against x_0 (..., B, C, t, h, w)."""
    sigma = sigma.float().view(-1, 1, 1, 1, 1)
    return (1 - sigma) * x_0 + sigma * noise


def to_velocity(output: Tensor, x_sigma: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """A network's output as velocity; from x_0 it is (x_sigma - x_0) / sigma, with sigma at least 0.001."""
    if prediction == "velocity":
        return output
    return (x_sigma - output) / sigma.view(-1, 1, 1, 1, 1).clamp_min(1e-3)


@dataclass(frozen=True)
class FlowMatching:
    """The training objective.

    Attributes:
        prediction: what the network outputs. "velocity" is Wan's. "x_0" suits a network that is narrower than
            its token (toy scale): it need not carry the noise from input to output.
        shift: moves uniform sigma towards noise, where layout is decided: sigma' = shift * sigma /
            (1 + (shift - 1) * sigma). 1 is uniform.
        weighting: how much each noise level counts. "bell" is DiffSynth's, with which Kiwi-Edit trains:
            exp(-2 (sigma - 1/2)^2) less its smallest value, scaled to a mean of 1 over training's levels.
        min_sigma_weight: for x_0. The loss is that of the velocity, (error of x_0)^2 / sigma^2, but divides
            by this sigma at least, so that small sigma do not dominate.
    """

    prediction: Prediction = "velocity"
    shift: float = 1.0
    weighting: Literal["uniform", "bell"] = "uniform"
    min_sigma_weight: float = 0.25

    def __post_init__(self):
        check_choices(self)
        if not (self.shift > 0 and self.min_sigma_weight > 0):
            raise ValueError("shift and min_sigma_weight must be positive.")

    def sample_sigma(self, random: StepRandom) -> Tensor:
        """(B,) noise levels: one in each slice of [0, 1], so that the mean level varies little by batch."""
        u = random.stratified()
        return self.shift * u / (1 + (self.shift - 1) * u)

    def quantile(self, sigma: Tensor) -> Tensor:
        """Where each sigma lies in the distribution that training draws from, in [0, 1]."""
        return sigma / (self.shift - (self.shift - 1) * sigma)

    add_noise = staticmethod(add_noise)

    def loss(self, output: Tensor, x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Mean squared velocity error of each clip in float32, (..., B, C, t, h, w) -> (..., B)."""
        velocity = self.prediction == "velocity"
        target = noise.float() - x_0.float() if velocity else x_0.float()
        error = (output.float() - target).square().mean((-4, -3, -2, -1))
        if self.weighting == "bell":
            error = error * self._bell(sigma)
        return error if velocity else error / sigma.clamp_min(self.min_sigma_weight) ** 2

    def _bell(self, sigma: Tensor) -> Tensor:
        u = torch.linspace(1, 0, 1001, device=sigma.device)[:-1]  # the 1000 levels of DiffSynth's scheduler
        levels = self.shift * u / (1 + (self.shift - 1) * u)
        bell = torch.exp(-2 * (levels - 0.5) ** 2)
        lowest = bell.min()
        return (torch.exp(-2 * (sigma - 0.5) ** 2) - lowest).clamp_min(0) / (bell - lowest).mean()

    def loss_where(self, mask: Tensor, output: Tensor, x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """:meth:`loss` averaged where ``mask`` (B, 1, t, h, w) is 1, so that a small edit counts as much as a
        large one. It is 0 for clips without any 1."""
        share = mask.mean((1, 2, 3, 4)).clamp_min(1e-6)
        return self.loss(mask * output, mask * x_0, mask * noise, sigma) / share
