"""What MiVE, RVEDiT and GenCompositor do with clips and samples beyond Vera's stages.

- MiVE (arXiv 2605.14664): :class:`ExpandPairs`, :class:`ScoreFilter`, :class:`Quota`
- RVEDiT (arXiv 2605.24674): :class:`Quota` per data set and category; :class:`.VLMCaption` captions anew
- GenCompositor (arXiv 2509.02460): :class:`Triplet`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vera_lite.dataset.backgrounds import new_background
from vera_lite.dataset.checks import Rejected
from vera_lite.dataset.stage import Ok, Sample, digest
from vera_lite.dataset.stages import Inputs, VeraStage, load, save
from vera_lite.media.clip import composite
from vera_lite.media.placement import (
    LUMINANCE_GAMMA,
    augment_luminance,
    centre_foreground,
    inflate_mask,
    object_extent,
)


@dataclass
class ExpandPairs(VeraStage):
    """Three pairs of one subject F and two backgrounds: MiVE's synthetic part.

    From ``subject`` and ``alpha`` of a background change (:class:`.Matte`): deletion F on B1 -> B1, addition
    B1 -> F on B1, replacement F on B1 -> F on B2. Each pair is a sample with ``source``, ``composite`` (its
    target) and ``mask``. The paper's formulae are not public; these follow its words.

    Attributes:
        seed: which backgrounds a clip gets depends on this and its key.
    """

    seed: int = 0
    name, only = "expand_pairs", "background_change"

    def work(self, sample: Sample, inputs: Inputs, out: Path) -> Ok:
        subject, alpha, mask = load(inputs, "subject", "alpha", "mask")
        matte, scenes, turn = 1 - alpha, {}, 0
        while len(scenes) < 2:
            pixels, words = new_background(digest(self.seed, sample.key, turn), subject)
            scenes.setdefault(words, pixels)
            turn += 1
        (first, second), behind = scenes, list(scenes.values())
        videos = {"b1": behind[0], "fb1": composite(subject, matte, behind[0])}
        videos |= {"fb2": composite(subject, matte, behind[1]), "mask": mask}
        label = sample.facts.get("label", "the person")
        pairs = {
            "deletion": ("fb1", "b1", f"Remove {label}."),
            "addition": ("b1", "fb1", f"Add {label} in front of {first}."),
            "replacement": ("fb1", "fb2", f"Change the background to {second}. Keep {label} as it is."),
        }
        written = save(sample, out, videos).sample.files
        samples = [
            Sample(
                digest(sample.key, category),
                category,
                {"source": written[source], "composite": written[target], "mask": written["mask"]},
                sample.facts | {"instruction": instruction, "parent": sample.key},
            )
            for category, (source, target, instruction) in pairs.items()
        ]
        return Ok(samples[0], tuple(samples[1:]))


def verdict(score: float) -> str | None:
    """MiVE's bands of a score in [0, 10]: why a pair is left out, or None if it stays.

    The paper prints 5.0-7.5 and 7.6-8.4, which leave gaps; half-open bands close them.
    """
    if not 0 <= score <= 10:
        raise ValueError(f"a score lies in [0, 10], not {score}.")
    return "hard_reject" if score < 5 else "quality_reject" if score < 8.5 else None


@dataclass
class ScoreFilter(VeraStage):
    """Keeps samples by the fact ``score`` in [0, 10], which a judge has given.

    Attributes:
        above: keep what is above; OpenVE's part of MiVE's data takes 9.3. None: the bands of :func:`verdict`.
    """

    above: float | None = None
    name = "score_filter"

    def work(self, sample: Sample, inputs: Inputs, out: Path) -> Ok:
        score = sample.facts.get("score")
        if score is None:
            raise Rejected("no_score", "no judge has scored it")
        reason = verdict(score) if self.above is None else None if score > self.above else "score_too_low"
        if reason is not None:
            raise Rejected(reason, f"its score is {score}", score=score)
        return Ok(sample)


@dataclass
class Quota:
    """A :class:`.Choice`: at most so many samples of each stratum, in an order that is a hash.

    A stratum is a category and the values of some facts. Which samples stay depends on ``seed`` and their
    keys alone: not on the order of files, and taking fewer takes a part of the same ones.

    Attributes:
        most: of each stratum; MiVE takes 4,000 per category, RVEDiT 10,000 per data set and category.
        by: facts that split the categories further, such as ("dataset",).
        categories: names of the categories here by those of the data sets, such as {"local_add": "addition"};
            samples of others are left out. None: every category stands for itself.
        seed: of the hash.
    """

    most: int
    by: tuple[str, ...] = ()
    categories: dict[str, str] | None = None
    seed: int = 0
    name: str = field(default="quota", init=False)
    version: str = field(default="1", init=False)

    @property
    def config(self) -> dict[str, Any]:
        return {"most": self.most, "by": list(self.by), "categories": self.categories, "seed": self.seed}

    def stratum(self, sample: Sample) -> tuple[str, ...] | None:
        """Where a sample counts; None if nowhere."""
        names = self.categories
        category = sample.category if names is None else names.get(sample.category)
        return None if category is None else (category, *(str(sample.facts.get(fact)) for fact in self.by))

    def choose(self, samples: Sequence[Sample]) -> dict[str, str]:
        left_out, taken = {}, Counter()
        for sample in sorted(samples, key=lambda s: digest(self.seed, s.key, s.category)):
            stratum = self.stratum(sample)
            if stratum is None:
                left_out[sample.key] = "category_not_used"
            elif taken[stratum] == self.most:
                left_out[sample.key] = "over_quota"
            else:
                taken[stratum] += 1
        return left_out

    def shortfall(self, samples: Sequence[Sample]) -> dict[tuple[str, ...], int]:
        """How many samples each stratum lacks."""
        counts = Counter(stratum for s in samples if (stratum := self.stratum(s)) is not None)
        return {stratum: self.most - count for stratum, count in counts.items() if count < self.most}


@dataclass
class Triplet(VeraStage):
    """GenCompositor's training sample from a real clip: ``foreground``, ``background_mask``, ``composite``.

    The object is centred in every frame on a white canvas, which takes its path away. Its mask is inflated,
    so that the model has room for edges and shadow. Its brightness is changed, so that the model takes it
    from the background. Files needed: ``composite``, ``subject``, ``alpha``, ``mask`` of an object addition.

    Attributes:
        canvas: side of the white canvas, in pixels.
        gamma: range of the exponent of the brightness.
        seed: the gamma of a clip depends on this and its key.
    """

    canvas: int = 576
    gamma: tuple[float, float] = LUMINANCE_GAMMA
    seed: int = 0
    name, only = "triplet", "object_addition"

    def work(self, sample: Sample, inputs: Inputs, out: Path) -> Ok:
        subject, alpha, mask = load(inputs, "subject", "alpha", "mask")
        if not (alpha > 0).any():
            raise Rejected("nothing_found", "alpha is 0 everywhere")
        # The layer's shadow stays behind: the model paints one that fits the new place.
        matte = alpha * (mask > 0)
        path, _ = object_extent(matte)
        colour, centred = centre_foreground(subject, matte, (self.canvas, self.canvas))
        share = int(digest(self.seed, sample.key)[:8], 16) / 16**8
        gamma = self.gamma[0] + (self.gamma[1] - self.gamma[0]) * share
        colour = augment_luminance(colour[None], torch.tensor([gamma]))[0]
        videos = {
            "foreground": composite(colour, centred, torch.ones_like(colour)),
            "background_mask": inflate_mask(mask),
        }
        positions = [[round(float(v), 2) for v in point] for point in path]
        return save(sample, out, videos, gamma=round(gamma, 6), path=positions)
