"""Denoising diffusion (DDPM) on the schedule of CogVideoX."""

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vera_lite.diffusion.draws import StepRandom
from vera_lite.errors import check_choices


@dataclass(frozen=True)
class Diffusion:
    """The training objective (arXiv 2006.11239) on the schedule of CogVideoX-5B.

    With abar_t the share of signal that is left after t of 1000 steps, and sigma = t / 1000:

        x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise
        v   = sqrt(abar_t) noise - sqrt(1 - abar_t) x_0        (arXiv 2202.00512)

    Attributes:
        prediction: what the network outputs, in diffusers' terms.
            "epsilon": the noise; the loss is its mean squared error.
            "v_prediction": v. The loss (v' - v)^2 is computed as (x_0' - x_0)^2 / (1 - abar_t) with
            x_0' = sqrt(abar_t) x_t - sqrt(1 - abar_t) v'.
    """

    prediction: Literal["epsilon", "v_prediction"] = "epsilon"

    def __post_init__(self):
        check_choices(self)

    def sample_sigma(self, random: StepRandom) -> Tensor:
        """(B,) of t / 1000, t uniform in 0 .. 999 and stratified as in :class:`FlowMatching`."""
        return (1000 * random.stratified()).floor().clamp(max=999) / 1000

    def quantile(self, sigma: Tensor) -> Tensor:
        """Where each sigma lies in the distribution that training draws from: uniform."""
        return sigma

    def alphas_cumprod(self, sigma: Tensor) -> Tensor:
        """abar_t, (B,) -> (B, 1, 1, 1, 1)."""
        # With epsilon, some signal must be left at t = 999: x_0 is computed by dividing by it.
        table = _signal_table(zero_terminal_snr=self.prediction == "v_prediction")
        steps = (1000 * sigma).round().long().clamp(0, 999)
        return table.to(sigma.device)[steps].view(-1, 1, 1, 1, 1)

    def add_noise(self, x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """x_t; sigma (B,) against x_0 (..., B, C, t, h, w)."""
        signal = self.alphas_cumprod(sigma)
        return signal.sqrt() * x_0 + (1 - signal).sqrt() * noise

    def predict_x0(self, output: Tensor, x_t: Tensor, sigma: Tensor) -> Tensor:
        """The network's guess of x_0, (..., B, C, t, h, w) in float32."""
        signal = self.alphas_cumprod(sigma)
        if self.prediction == "epsilon":
            return (x_t - (1 - signal).sqrt() * output) / signal.sqrt()
        return signal.sqrt() * x_t - (1 - signal).sqrt() * output

    def loss(self, output: Tensor, x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Mean over each clip, (..., B, C, t, h, w) -> (..., B)."""
        if self.prediction == "epsilon":
            return (output - noise).float().square().mean((-4, -3, -2, -1))
        x_t = self.add_noise(x_0.float(), noise.float(), sigma)
        error = self.predict_x0(output.float(), x_t, sigma) - x_0
        return (error.square() / (1 - self.alphas_cumprod(sigma))).mean((-4, -3, -2, -1))


@functools.cache
def _signal_table(zero_terminal_snr: bool) -> Tensor:
    """abar of the 1000 steps, (1000,): diffusers' ``CogVideoXDDIMScheduler`` with ``snr_shift_scale=1``.

    beta_t rises from 0.00085 to 0.012, linear in its square root; abar_t is the product of 1 - beta so far.
    For a terminal signal of zero, sqrt(abar) is shifted and stretched (arXiv 2305.08891, Algorithm 1).
    """
    # The cache outlives this call: it must hold no inference tensor, and stay on the CPU.
    with torch.inference_mode(False), torch.device("cpu"):
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        table = torch.cumprod(1 - betas, 0)
        if zero_terminal_snr:
            root = table.sqrt()
            table = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        return table.float()
