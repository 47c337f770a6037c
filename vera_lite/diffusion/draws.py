"""Randomness as pure functions, so that a resumed run continues as if it had never stopped."""

import torch
from torch import Tensor


class StepRandom:
    """Everything random in one training step, as a function of (seed, step, place in the global batch).

    A rank draws the same numbers for its clips as one process that trains on the whole batch. So neither an
    interruption nor another number of ranks changes the result.

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
        return self._mine(
            torch.rand(self.global_batch, *shape, generator=self._generator, dtype=torch.float32)
        )

    def stratified(self) -> Tensor:
        """One uniform number in each slice [i / n, (i + 1) / n) of the global batch of n clips, in random
        order: this rank's part, (B,)."""
        return (self.permutation() + self.uniform()) / self.global_batch

    def shared_integer(self, below: int) -> int:
        """One number in 0 .. below - 1 for the whole global batch, the same on every rank."""
        return int(torch.randint(below, (), generator=self._generator))

    def noise(self, like: Tensor) -> Tensor:
        """Normal noise in float32 of the shape (..., B, C, t, h, w), from one generator per clip."""
        clips = []
        for slot in range(self.first, self.first + self.batch):
            generator = torch.Generator().manual_seed(mix_seed(self._seed, self._step, slot))
            shape = (*like.shape[:-5], *like.shape[-4:])
            clips.append(torch.randn(shape, generator=generator, dtype=torch.float32))
        return torch.stack(clips, dim=like.ndim - 5).to(like.device)


def mix_seed(*numbers: int) -> int:
    """One seed from several numbers; different tuples give unrelated seeds (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state & (2**63 - 1)
