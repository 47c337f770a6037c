"""A judge protocol of the toy world: the toy vision-language model is asked what it sees in the edited clip.

The large models' rubrics are beyond its words. This question it can answer, and the truth is known, so it
shows how far a model that judges can be trusted: the true edit itself does not score 1.
"""

import re

from vera_lite.errors import UserError
from vera_lite.evaluation.judges import Case, Part, Protocol, Unparsable, answer_text, evenly
from vera_lite.toy.words import PLACES

_PLACES = "|".join(sorted(PLACES, key=len, reverse=True))


class ToyVQA(Protocol):
    """One question about the edited clip alone; the score is the share of the right answer's words that stand
    at their place in the reply, 0 to 1. It reads instructions of the toy worlds that add an object or change
    the background."""

    name = "toy_vqa"
    axes = {"words": "right words"}
    scale = (0, 1)
    side, quality = None, None
    attempts = 1

    def messages(self, case: Case, call: str) -> list[tuple[str, list[Part]]]:
        question, _ = question_and_answer(case.instruction)
        frames = [case.edited[t] for t in self.chosen(len(case.edited), case.fps)]
        return [("user", [*frames, question])]

    def chosen(self, frames: int, fps: float) -> list[int]:
        return evenly(2, frames)

    def parse(self, reply: str, call: str, instruction: str) -> dict[str, float]:
        _, answer = question_and_answer(instruction)
        said, right = re.findall(r"\w+", answer_text(reply).lower()), answer.split()
        if not said:
            raise Unparsable("the reply has no words")
        hits = sum(a == b for a, b in zip(said, right, strict=False))
        return {"words": round(hits / len(right), 4)}


def question_and_answer(instruction: str) -> tuple[str, str]:
    """What is asked of the edited clip, and what is true if the instruction was followed.

    Raises:
        UserError: it is no instruction of that kind.
    """
    added = re.fullmatch(rf"add (.+) at the ({_PLACES}) (moving \w+|standing still)( .+)?", instruction)
    if added:
        return f"what is at the {added[2]} ?", f"{added[1]} {added[3]}"
    if instruction.startswith("change the background to "):
        return "what is the background ?", instruction.removeprefix("change the background to ")
    raise UserError(f"toy_vqa has no question about {instruction!r}: it asks about added objects.")
