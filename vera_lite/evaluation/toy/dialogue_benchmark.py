"""How well a vision-language model answers questions about unseen toy clips."""

import itertools

import torch

from vera_lite.conditioning.vision_language import VisionLanguageModel
from vera_lite.evaluation.toy.tally import TEST_SEED, Row, Tally, batches
from vera_lite.toy.dialogues import KINDS, ask
from vera_lite.toy.edits import EditConfig
from vera_lite.toy.scene_edits import SceneEditConfig
from vera_lite.toy.scenes import SceneConfig
from vera_lite.toy.sprites import NOUNS
from vera_lite.toy.words import SHAPES
from vera_lite.toy.world import WorldConfig

_NAMES = {*NOUNS, *SHAPES}


def score_dialogues(
    vlm: VisionLanguageModel,
    world: WorldConfig | SceneConfig,
    clips: int = 256,
    seed: int = TEST_SEED,
    batch_size: int = 32,
) -> dict[str, Row]:
    """Ask every kind of question about ``clips`` clips, and let the model answer greedily.

    In the kind "edit" the question is the instruction of a toy edit, and the answer describes the result.

    Returns:
        For each kind, and with "chance_" before the name for the same answers compared with the truth of
        other clips (mean over all pairs):

        ``words``: share of the true answer's words that are at their place in the model's answer.
        ``exact``: share of answers that are right in every word.
        ``cell_error``, ``near`` ("locate" only): distance between the named and the true place in cells of
        the 8 x 8 grid, mean over first and last frame; share of places at most one cell off.

        ``noun`` ("what" only): share of answers that name the right kind of thing.
    """
    kinds = (*KINDS, "edit")
    said: dict[str, list[str]] = {kind: [] for kind in kinds}
    true: dict[str, list[str]] = {kind: [] for kind in kinds}
    edited = SceneEditConfig(unseen=world.unseen) if isinstance(world, SceneConfig) else EditConfig()
    for indices in batches(clips, batch_size):
        scenes = world.render(seed, indices)
        for kind in KINDS:
            asked = ask(scenes, kind, seed, indices)
            prompt = vlm.prompt(
                [d.clip for d in asked], [d.question for d in asked], [d.image for d in asked]
            )
            said[kind] += vlm.answer(prompt)
            true[kind] += [d.answer for d in asked]
        edits = edited.render(seed, indices)
        said["edit"] += vlm.answer(vlm.prompt(list(edits.source), edits.instruction))
        true["edit"] += edits.target_caption
    return {kind: _score(kind, said[kind], true[kind]) for kind in kinds}


def _score(kind: str, said: list[str], true: list[str]) -> Row:
    pairs = torch.tensor([[_compare(kind, s, t) for t in true] for s in said])  # (said, true, numbers)
    own = pairs.diagonal()  # (numbers, clips)
    others = (pairs.sum((0, 1)) - own.sum(1)) / (len(said) * (len(said) - 1))
    names = ("words", "exact", *{"locate": ("cell_error", "near"), "what": ("noun",)}.get(kind, ()))
    tally = Tally()
    tally.add(dict(zip(names, own.tolist(), strict=True)))
    row = tally.row()
    row.update({f"chance_{name}": value for name, value in zip(names, others.tolist(), strict=True)})
    return row


def _compare(kind: str, said: str, true: str) -> tuple[float, ...]:
    a, b = said.split(), true.split()
    words = sum(x == y for x, y in itertools.zip_longest(a, b) if y is not None) / len(b)
    if kind == "what":
        said_noun, noun = ([word for word in answer if word in _NAMES] for answer in (a, b))
        return words, float(a == b), float(said_noun == noun)
    if kind != "locate":
        return words, float(a == b)
    distances = []
    for i in (1, 4):  # "from x3 y2 to x5 y2"
        try:
            found, place = ([int(w[1:]) for w in answer[i : i + 2]] for answer in (a, b))
            distances.append(sum((f - p) ** 2 for f, p in zip(found, place, strict=True)) ** 0.5)
        except ValueError:  # no place named: the largest error, from corner to corner
            distances.append(7 * 2**0.5)
    return words, float(a == b), sum(distances) / 2, sum(d < 1.5 for d in distances) / 2
