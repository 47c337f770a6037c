"""A judge in the dataset pipeline: the score by which MiVE keeps or rejects pairs of training data."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vera_lite.dataset.stage import Fail, Ok, Sample
from vera_lite.dataset.stages import Inputs, VeraStage, load
from vera_lite.evaluation.judges import PROTOCOLS, Case
from vera_lite.evaluation.judging import Judge, LocalJudge, Log, ServerJudge, judge_clip, read_reply


@functools.lru_cache(maxsize=1)
def _judge(model: str | None, server: str | None, device: str) -> Judge:
    return LocalJudge(model, device) if server is None else ServerJudge(server, str(model))


@dataclass
class JudgeScore(VeraStage):
    """Writes the fact ``score`` in [0, 10] for :class:`vera_lite.dataset.papers.ScoreFilter`.

    The judge sees ``source``, ``composite`` and the instruction, by the protocol "mive_data" of
    :mod:`.judges`. A reply without exactly one score in the range fails the sample, which is quarantined and
    can be retried; it never becomes a number.

    Attributes:
        model: folder of a vision-language model, or what ``server`` calls it; None: the toy model in the
            package, which cannot judge.
        server: URL of an OpenAI-compatible server, up to its ``/v1``.
        device: of a model that is loaded here.
    """

    model: str | None = None
    server: str | None = None
    device: str = "auto"
    name = "score"

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {"rubric": PROTOCOLS["mive_data"].rubric}

    def work(self, sample: Sample, inputs: Inputs, out: Path) -> Ok | Fail:
        protocol, judge = PROTOCOLS["mive_data"], _judge(self.model, self.server, self.device)
        source, edited = load(inputs, "source", "composite")
        instruction = sample.facts["instruction"]
        case = Case(sample.key, sample.category, instruction, source, edited, sample.facts["fps"])
        log = Log(out / "replies.jsonl")  # not kept: it holds times
        judge_clip(case, "data", protocol, judge, log)
        record = read_reply(protocol, log.records[-1])
        if record.outcome != "ok":
            return Fail(f"the judge gave no score ({record.outcome}: {record.reason}).")
        facts = {"score": record.scores["data"], "score_source": judge.name, "score_reply": record.reply}
        return Ok(replace(sample, facts=sample.facts | facts))
