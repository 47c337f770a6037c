"""A judge protocol of the toy world: the toy vision-language model is asked what it sees in the edited clip.

The large models' rubrics are beyond its words. This question it can answer, and the truth is known, so it
shows how far a model that judges can be trusted: the true edit itself does not score 1.
"""

import re

from vera_lite.errors import UserError
from vera_lite.evaluation.judges import Case, Messages, Protocol, Unparsable, answer_text
from vera_lite.toy.words import PLACES

_PLACES = "|".join(sorted(PLACES, key=len, reverse=True))


class ToyVQA(Protocol):
    """One question about the edited clip alone, if it adds an object or changes the background."""

    def check(self, category: str, instruction: str) -> None:
        question_and_answer(instruction)

    def messages(self, case: Case, call: str) -> Messages:
        question, _ = question_and_answer(case.instruction)
        frames = [case.edited[t] for t in self.chosen(len(case.edited), case.fps)]
        return [("user", [*frames, question])]


def read(reply: str, protocol: Protocol, call: str, instruction: str) -> dict[str, float]:
    """The share of the right answer's words that stand at their place in the reply."""
    _, answer = question_and_answer(instruction)
    said, right = re.findall(r"\w+", answer_text(reply).lower()), answer.split()
    if not said:
        raise Unparsable("the reply has no words")
    hits = sum(a == b for a, b in zip(said, right, strict=False))
    return {"words": round(hits / len(right), 4)}


TOY_VQA = ToyVQA(
    name="toy_vqa",
    read=read,
    source="A question of the toy world",
    decided="2 frames, as the toy model reads pictures in pairs of frames; 1 attempt",
    axes={"words": "right words"},
    scale=(0, 1),
    frames=2,
    side=None,
    quality=None,
    attempts=1,
)


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
