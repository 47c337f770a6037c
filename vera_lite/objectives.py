"""Flow matching (arXiv 2210.02747) in Wan's convention; at the end of the file, classic diffusion.

sigma = 1 is noise and 0 is clean; timestep = 1000 * sigma;

    x_sigma = (1 - sigma) * x_0 + sigma * noise          the straight path
    v       = d x_sigma / d sigma = noise - x_0          the velocity target
"""

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import CogVideoXDDIMScheduler
from torch import Tensor

from vera_lite.errors import UserError

Prediction = Literal["velocity", "x_0"]


def noised(x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_sigma on the straight path; sigma (B,) against x_0 (..., B, C, t, h, w)."""
    sigma = sigma.view(-1, 1, 1, 1, 1)
    return (1 - sigma) * x_0 + sigma * noise


def to_velocity(output: Tensor, x_sigma: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """What a network predicts, as a velocity.

    From x_0:  v = (x_sigma - x_0) / sigma, with sigma held above 0.001 so that the division stays tame.
    """
    if prediction == "velocity":
        return output
    return (x_sigma - output) / sigma.view(-1, 1, 1, 1, 1).clamp_min(1e-3)


class StepDraws:
    """Everything random in one training step, as a function of (seed, step, place in the global batch).

    A rank draws what its clips would get if one process trained on the whole batch, so neither an
    interruption nor another number of ranks changes what is learned.

    Args:
        seed: of the run; any salt (training, validation) is part of it.
        step: batch number.
        batch: clips on this rank.
        rank, ranks: data-parallel position.
    """

    def __init__(self, seed: int, step: int, batch: int, rank: int = 0, ranks: int = 1):
        self.batch, self.first = batch, rank * batch
        self.global_batch = batch * ranks
        self._seed, self._step = seed, step
        self._generator = torch.Generator().manual_seed(mix_seed(seed, step))

    def _mine(self, values: Tensor) -> Tensor:
        return values[self.first : self.first + self.batch]

    def permutation(self) -> Tensor:
        """This rank's part of a random order of the global batch, (B,)."""
        return self._mine(torch.randperm(self.global_batch, generator=self._generator))

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), (B, *shape)."""
        return self._mine(torch.rand(self.global_batch, *shape, generator=self._generator))

    def shared_integer(self, below: int) -> int:
        """One number in 0 .. below - 1 for the whole global batch: every rank draws the same."""
        return int(torch.randint(below, (), generator=self._generator))

    def noise(self, like: Tensor) -> Tensor:
        """Normal noise shaped like (layers, B, C, t, h, w), from one generator a clip."""
        clips = []
        for slot in range(self.first, self.first + self.batch):
            generator = torch.Generator().manual_seed(mix_seed(self._seed, self._step, slot))
            clips.append(torch.randn(like.shape[0], *like.shape[2:], generator=generator))
        return torch.stack(clips, dim=1).to(like)


def mix_seed(*numbers: int) -> int:
    """One seed from several numbers; different tuples give unrelated seeds (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state & (2**63 - 1)


@dataclass(frozen=True)
class FlowMatching:
    """The training objective.

    Attributes:
        prediction: what the network outputs. "velocity" is Wan's; "x_0" lets a network narrower than
            its token (toy scale) leave the noise to the formula instead of passing it through.
        shift: moves uniform sigma towards noise, sigma' = shift * sigma / (1 + (shift - 1) * sigma),
            where layout is decided. 1 is uniform.
        min_sigma_weight: with x_0, the loss is that of the velocity, (x_0 error)^2 / sigma^2, with
            sigma held above this, or small sigma would own the loss.
    """

    prediction: Prediction = "velocity"
    shift: float = 1.0
    min_sigma_weight: float = 0.25

    def __post_init__(self):
        if self.prediction not in ("velocity", "x_0"):
            raise UserError(f"prediction is velocity or x_0, not {self.prediction!r}.")
        if self.shift <= 0 or self.min_sigma_weight <= 0:
            raise UserError("shift and min_sigma_weight must be positive.")

    def sample_sigma(self, draws: "StepDraws") -> Tensor:
        """(B,) noise levels, stratified: one uniform number a slice of [0, 1], in random order.

        Strata take out most of the variance that a batch's loss owes to its noise levels.
        """
        slices = draws.permutation() + draws.uniform()
        u = slices / draws.global_batch
        return self.shift * u / (1 + (self.shift - 1) * u)

    def quantile(self, sigma: Tensor) -> Tensor:
        """Where each sigma lies in the distribution that training draws from, in [0, 1]."""
        return sigma / (self.shift - (self.shift - 1) * sigma)

    def noised(self, x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """:func:`noised`, for systems that leave the path to their objective."""
        return noised(x_0, noise, sigma)

    def loss(self, output: Tensor, x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Mean squared velocity error of each clip, (..., B, C, t, h, w) -> (..., B)."""
        if self.prediction == "velocity":
            return (output - (noise - x_0)).float().square().mean((-4, -3, -2, -1))
        error = (output - x_0).float().square().mean((-4, -3, -2, -1))
        return error / sigma.clamp_min(self.min_sigma_weight) ** 2

    def loss_where(self, mask: Tensor, output: Tensor, x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """:meth:`loss`, its mean taken where ``mask`` (B, 1, t, h, w) is 1: a small edit counts as much as a
        large one. 0 where nothing is marked."""
        share = mask.mean((1, 2, 3, 4)).clamp_min(1e-6)
        return self.loss(mask * output, mask * x_0, mask * noise, sigma) / share


@dataclass(frozen=True)
class Diffusion:
    """Denoising diffusion (DDPM, arXiv 2006.11239) on the schedule of CogVideoX-5B.

    With abar_t the share of signal left after t of 1000 steps, and sigma = t / 1000:

        x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise
        v   = sqrt(abar_t) noise - sqrt(1 - abar_t) x_0        (arXiv 2202.00512)

    Attributes:
        prediction: what the network outputs, in diffusers' words.
            "epsilon": the noise; the loss is its mean squared error.
            "v_prediction": v, read as the clean latents x_0' = sqrt(abar_t) x_t - sqrt(1 - abar_t) v'. The
            loss is (x_0' - x_0)^2 / (1 - abar_t), which is (v' - v)^2 by another name.
    """

    prediction: Literal["epsilon", "v_prediction"] = "epsilon"

    def __post_init__(self):
        if self.prediction not in ("epsilon", "v_prediction"):
            raise UserError(f"prediction is epsilon or v_prediction, not {self.prediction!r}.")

    def sample_sigma(self, draws: StepDraws) -> Tensor:
        """(B,) of t / 1000, t uniform in 0 .. 999 and stratified as in :class:`FlowMatching`."""
        u = (draws.permutation() + draws.uniform()) / draws.global_batch
        return (1000 * u).floor().clamp(max=999) / 1000

    def quantile(self, sigma: Tensor) -> Tensor:
        """Where each sigma lies in the distribution that training draws from: uniform."""
        return sigma

    def signal(self, sigma: Tensor) -> Tensor:
        """abar_t, (B,) -> (B, 1, 1, 1, 1)."""
        # Without any signal left at t = 999, noise could not be turned into clean latents.
        table = _signal_table(zero_terminal_snr=self.prediction == "v_prediction")
        steps = (1000 * sigma).round().long().clamp(0, 999)
        return table.to(sigma.device)[steps].view(-1, 1, 1, 1, 1)

    def noised(self, x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """x_t; sigma (B,) against x_0 (..., B, C, t, h, w)."""
        signal = self.signal(sigma)
        return (signal.sqrt() * x_0 + (1 - signal).sqrt() * noise).to(x_0.dtype)

    def clean(self, output: Tensor, x_t: Tensor, sigma: Tensor) -> Tensor:
        """The network's guess of x_0, (..., B, C, t, h, w) in float32."""
        signal = self.signal(sigma)
        if self.prediction == "epsilon":
            return (x_t - (1 - signal).sqrt() * output) / signal.sqrt()
        return signal.sqrt() * x_t - (1 - signal).sqrt() * output

    def loss(self, output: Tensor, x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Mean over each clip, (..., B, C, t, h, w) -> (..., B)."""
        if self.prediction == "epsilon":
            return (output - noise).float().square().mean((-4, -3, -2, -1))
        error = self.clean(output.float(), self.noised(x_0.float(), noise.float(), sigma), sigma) - x_0
        return (error.square() / (1 - self.signal(sigma))).mean((-4, -3, -2, -1))


@functools.cache
def _signal_table(zero_terminal_snr: bool) -> Tensor:
    """abar of the 1000 steps, (1000,)."""
    # Kept beyond this call: it must not be born as an inference tensor, or on another device.
    with torch.inference_mode(False), torch.device("cpu"):
        return CogVideoXDDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            snr_shift_scale=1.0,
            rescale_betas_zero_snr=zero_terminal_snr,
        ).alphas_cumprod.float()
