"""Rate pairs of results blindly: which of two edits of one clip is better, and by how much?

    panel = RatingPanel([Pair("clip 3", ("layers", "regeneration"), (a, b), "add a red ring", source), ...])
    panel                                    # rate: click, or keys 1 to 5
    panel.ratings()                          # with the names of the methods again

The page knows neither methods nor attention checks. It also works without Python (:meth:`.Widget.to_static`):
raters send back the file that it saves, and :meth:`RatingPanel.read` gives their ratings.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from traitlets import Bytes, Dict, Float, Int, List, TraitError, Unicode, validate

from vera_lite.errors import UserError
from vera_lite.media.clip import to_uint8
from vera_lite.media.files import replacing
from vera_lite.media.video import frame_rate
from vera_lite.widgets.base import Widget, checked_video, image_file, script

#: From "the left one is much better" to "the right one is much better"; 0 is a tie.
ANSWERS = range(-2, 3)
#: Videos whose longer side has at most so many pixels are stored exactly; larger ones as JPEG, all alike.
EXACT_SIDE = 128
#: Bytes of pictures that a notebook may have to store, in base64.
BUDGET = 3_000_000


@dataclass(frozen=True)
class Pair:
    """Two results for one clip."""

    item: str  #: name of the clip.
    methods: tuple[str, str]  #: what made them.
    videos: tuple[Tensor, Tensor]  #: (T, 3, H, W) in [0, 1] each.
    instruction: str = ""
    source: Tensor | None = None  #: (T, 3, H, W), shown beside them.
    better: str | None = None  #: the method that whoever looks must prefer: the pair is an attention check.


@dataclass(frozen=True)
class Rating:
    """One answer, with the names that the page hid."""

    rater: str
    item: str
    methods: tuple[str, str]
    preference: int  #: -2 .. 2; positive if the first of ``methods`` was preferred, 0 for a tie.
    seconds: float  #: from the pair's appearance to the answer.
    is_repeat: bool  #: the pair had been shown before, with sides exchanged.
    passed: bool | None  #: whether an attention check was; None if the pair is none.


class RatingPanel(Widget):
    """Show pairs side by side, in random order and on random sides, and ask which one is better.

    Args:
        pairs: what to compare, attention checks among them; videos of one pair have one shape.
        seed: of order and sides. The same pairs and seed are the same study, in any session.
        repeats: how many pairs come a second time at the end, with sides exchanged, to measure how far a
            rater agrees with themselves.
        fps: frames per second.

    Raises:
        ValueError: videos that do not fit together, a value out of range, or more pictures than a notebook
            should store.
    """

    _esm = script("element", "rating")
    _css = Path(__file__).with_name("rating.css")

    rater = Unicode("").tag(sync=True)  #: who rates; a name or a number.
    #: what was answered: ``{"screen": number, "answer": -2 .. 2, "seconds": float}``, at most one a screen.
    answers = List(Dict()).tag(sync=True)
    screen = Int(0).tag(sync=True)  #: the pair that is shown; the number of pairs when all is done.
    #: names this very study in saved files, and where a browser remembers unfinished ones.
    study = Unicode().tag(sync=True)
    fps = Float().tag(sync=True)
    height = Int(620).tag(sync=True)

    # For each screen: instruction, and numbers of the videos at the left, at the right and of the source.
    _screens = List(Dict()).tag(sync=True)
    _videos = List(List(Bytes())).tag(sync=True)

    def __init__(self, pairs: Sequence[Pair], seed: int = 0, repeats: int = 0, fps: float = 8.0):
        if not pairs or not 0 <= repeats <= len(pairs):
            raise ValueError(f"give pairs, and at most as many repeats: {len(pairs)} and {repeats}.")
        rng = np.random.default_rng(seed)
        videos = [video for pair in pairs for video in _checked(pair)]
        place = rng.permutation(len(videos)).tolist()  # a video's number must not tell its method
        files: list[list[bytes]] = [[] for _ in videos]
        for number, video in zip(place, videos, strict=True):
            files[number] = _files(video)
        size = 4 / 3 * sum(len(frame) for video in files for frame in video)
        if size > BUDGET:
            raise ValueError(
                f"the pairs would put {size / 1e6:.1f} MB of pictures into the notebook, over "
                f"{BUDGET / 1e6:g} MB: give fewer pairs, or smaller or shorter videos."
            )
        starts = np.cumsum([0] + [2 + (pair.source is not None) for pair in pairs]).tolist()
        sides = rng.integers(0, 2, len(pairs)).tolist()  # which of the two is at the left
        order = rng.permutation(len(pairs)).tolist()
        #: (pair, which of the two is at the left) of each screen.
        self._order = [(i, sides[i]) for i in order]
        self._order += [(i, 1 - sides[i]) for i in rng.permutation(len(pairs)).tolist()[:repeats]]
        self.pairs = list(pairs)
        screens = [
            {
                "instruction": pairs[i].instruction,
                "left": place[starts[i] + side],
                "right": place[starts[i] + 1 - side],
                "source": place[starts[i] + 2] if pairs[i].source is not None else None,
            }
            for i, side in self._order
        ]
        digest = hashlib.sha256(json.dumps(screens).encode())
        for frame in (frame for video in files for frame in video):
            digest.update(frame)
        super().__init__(
            _screens=screens, _videos=files, fps=float(frame_rate(fps)), study=digest.hexdigest()[:16]
        )

    @validate("answers")
    def _check_answers(self, proposal):
        seen = set()
        for row in proposal["value"]:
            if problem := _problem(row, len(self._screens), seen):
                raise TraitError(f"answers: {problem}.")
        return proposal["value"]

    @validate("screen")
    def _check_screen(self, proposal):
        if not 0 <= proposal["value"] <= len(self._screens):
            raise TraitError(f"screen lies in 0 .. {len(self._screens)}, not {proposal['value']}.")
        return proposal["value"]

    def ratings(self) -> list[Rating]:
        """What was answered so far, in the order of the screens."""
        return self._unblind(self.rater, self.answers)

    def lines(self) -> str:
        """The answers as JSONL, as the page saves them."""
        head = {"study": self.study, "rater": self.rater}
        return "".join(json.dumps(head | row) + "\n" for row in self.answers)

    def write(self, path: str | Path) -> None:
        """Save the answers as JSONL, whole or not at all."""
        with replacing(path) as temporary:
            temporary.write_text(self.lines(), encoding="utf-8")

    def read(self, path: str | Path) -> list[Rating]:
        """Ratings from a file that a page of this study saved.

        Raises:
            UserError: a line is no answer, or one to another study.
        """
        rows: dict[str, list[dict]] = {}
        seen: dict[str, set[int]] = {}
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                study, rater = row.pop("study"), str(row.pop("rater"))
            except (ValueError, AttributeError, KeyError) as error:
                raise UserError(f"line {number} of {path} is no answer: save the file again.") from error
            if study != self.study:
                raise UserError(f"line {number} of {path} is of another study: give the same pairs and seed.")
            if problem := _problem(row, len(self._screens), seen.setdefault(rater, set())):
                raise UserError(f"line {number} of {path}: {problem}; save the file again.")
            rows.setdefault(rater, []).append(row)
        return [rating for rater, answers in rows.items() for rating in self._unblind(rater, answers)]

    def resume(self, path: str | Path) -> None:
        """Go on where a saved file of one rater ends. UserError as in :meth:`read`, or for several raters."""
        raters = {rating.rater for rating in self.read(path)}
        if len(raters) > 1:
            raise UserError(f"{path} has answers of {len(raters)} raters; resume one of them.")
        lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        answers = [{name: row[name] for name in ("screen", "answer", "seconds")} for row in lines]
        done = {row["screen"] for row in answers}
        with self.hold_sync():
            self.rater, self.answers = "".join(raters), answers
            self.screen = next((k for k in range(len(self._screens)) if k not in done), len(self._screens))

    def _unblind(self, rater: str, answers: Sequence[dict]) -> list[Rating]:
        found = []
        for row in sorted(answers, key=lambda row: row["screen"]):
            i, left = self._order[row["screen"]]
            pair, preference = self.pairs[i], row["answer"] * (1 if left else -1)
            wanted = None if pair.better is None else 1 if pair.better == pair.methods[0] else -1
            passed = None if wanted is None else preference * wanted > 0
            is_repeat = row["screen"] >= len(self.pairs)
            found.append(
                Rating(rater, pair.item, pair.methods, preference, row["seconds"], is_repeat, passed)
            )
        return found


def _checked(pair: Pair) -> list[Tensor]:
    """The two videos, then the source if there is one."""
    if pair.methods[0] == pair.methods[1] or pair.better not in (None, *pair.methods):
        raise ValueError(f"{pair.item}: give two methods, and as the better one none or one of them.")
    names = [f"{method} of {pair.item}" for method in pair.methods] + [f"the source of {pair.item}"]
    videos = [*pair.videos] + ([] if pair.source is None else [pair.source])
    videos = [checked_video(name, video, 3) for name, video in zip(names, videos, strict=False)]
    if len(shapes := {tuple(video.shape) for video in videos}) > 1:
        raise ValueError(f"the videos of {pair.item} have shapes {sorted(shapes)}; give one.")
    return videos


def _files(video: Tensor) -> list[bytes]:
    """One picture a frame."""
    is_exact = max(video.shape[2:]) <= EXACT_SIDE
    return [
        image_file(Image.fromarray(frame.permute(1, 2, 0).numpy()), is_exact) for frame in to_uint8(video)
    ]


def _problem(row: dict, screens: int, seen: set[int]) -> str:
    """What is wrong with an answer, "" if nothing; ``seen`` collects the screens of earlier ones."""
    if not isinstance(row, dict) or row.keys() != {"screen", "answer", "seconds"}:
        return "an answer has screen, answer and seconds"
    if type(row["screen"]) is not int or not 0 <= row["screen"] < screens:
        return f"there is no screen {row['screen']}"
    if type(row["answer"]) is not int or row["answer"] not in ANSWERS:
        return f"answer lies in -2 .. 2, not {row['answer']}"
    if type(row["seconds"]) not in (int, float) or not 0 <= row["seconds"] < float("inf"):
        return f"seconds is a number from 0 on, not {row['seconds']}"
    if row["screen"] in seen:
        return f"screen {row['screen']} has two answers"
    seen.add(row["screen"])
    return ""
