"""Protocols of judges: what is shown, what is asked, and what becomes of hostile replies."""

import json
import math
from dataclasses import replace
from decimal import Decimal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vera_lite.errors import UserError
from vera_lite.evaluation.judges import (
    PROTOCOLS,
    Case,
    Unparsable,
    evenly,
    half_up,
    mean,
    one_a_second,
    score_lines,
)
from vera_lite.evaluation.toy.vqa import TOY_VQA, question_and_answer

ALL = [*PROTOCOLS.values(), TOY_VQA]
LINES = [PROTOCOLS[name] for name in ("openve_kiwi", "rvedit", "vera_vqa")]
#: Three scores in the range of all three protocols; the second pair of runs has other ones.
VALUES = [(4, 3, 5), (1, 5, 2)]


def case(**changes):
    video = torch.rand(9, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    facts = {"id": "a", "category": "local add", "instruction": "add a red ring", "source": video}
    return Case(**facts | {"edited": 1 - video} | changes)


def rubric(protocol, shown, call=None):
    return protocol.messages(shown, call or protocol.calls[0])[0][1][0]


def category_of(protocol):
    return list(protocol.categories or ("any",))[-1]


# --- hostile replies -----------------------------------------------------------------------------

OK, FAIL = "the scores", "no scores"


def each(form):
    """A reply whose lines are made by ``form(label, value, top)``."""
    return lambda lines, top: "\n".join(["Brief reasoning: fine."] + [form(n, v, top) for n, v in lines])


def whole(change):
    """A plain reply, changed as a whole."""
    return lambda lines, top: change(each(lambda n, v, _: f"{n}: {v}")(lines, top), lines)


def first(form):
    """Only the first score is written by ``form``."""
    return lambda lines, top: "\n".join(
        [form(*lines[0], top)] + [f"{name}: {value}" for name, value in lines[1:]]
    )


#: What is done to a reply, and what Kiwi's parser, RVEDiT's and Vera's must make of it.
HOSTILE = {
    "plain": (each(lambda n, v, _: f"{n}: {v}"), OK, OK, OK),
    "bold names": (each(lambda n, v, _: f"**{n}**: {v}"), FAIL, OK, OK),
    "bold names and colons": (each(lambda n, v, _: f"**{n}:** {v}"), FAIL, OK, OK),
    "bold numbers": (each(lambda n, v, _: f"{n}: **{v}**"), FAIL, OK, OK),
    "code marks": (each(lambda n, v, _: f"`{n}`: `{v}`"), FAIL, OK, OK),
    "a list": (each(lambda n, v, _: f"- {n}: {v}"), FAIL, OK, OK),
    "bullets": (each(lambda n, v, _: f" • {n}: {v}"), FAIL, OK, OK),
    "a numbered list": (each(lambda n, v, _: f"2) {n}: {v}"), FAIL, OK, OK),
    "headings": (each(lambda n, v, _: f"### {n}: {v}"), FAIL, OK, OK),
    "quoted": (each(lambda n, v, _: f"> {n}: {v}"), FAIL, OK, OK),
    "a space in front": (each(lambda n, v, _: f" {n}: {v}"), FAIL, OK, OK),
    "a space behind the name": (each(lambda n, v, _: f"{n} : {v}"), FAIL, OK, OK),
    "spaces behind": (each(lambda n, v, _: f"{n}: {v}  \t"), OK, OK, OK),
    "no space": (each(lambda n, v, _: f"{n}:{v}"), OK, OK, OK),
    "Windows line ends": (whole(lambda text, _: text.replace("\n", "\r\n")), OK, OK, OK),
    "of the top": (each(lambda n, v, top: f"{n}: {v}/{top:g}"), FAIL, OK, OK),
    "out of the top": (each(lambda n, v, top: f"{n}: {v} (out of {top:g})"), FAIL, OK, OK),
    "of another top": (first(lambda n, v, _: f"{n}: {v}/7"), FAIL, FAIL, FAIL),
    "in percent": (each(lambda n, v, _: f"{n}: {v} %"), FAIL, OK, OK),
    "a full stop": (each(lambda n, v, _: f"{n}: {v}."), OK, OK, OK),
    "in angle brackets": (each(lambda n, v, _: f"{n}: <{v}>"), FAIL, OK, OK),
    "in HTML": (first(lambda n, v, _: f"{n}: <b>{v}</b>"), FAIL, FAIL, FAIL),
    "words behind": (each(lambda n, v, _: f"{n}: {v}, the ring is there"), FAIL, OK, OK),
    "a number in the words behind": (first(lambda n, v, _: f"{n}: {v} in 12 frames"), FAIL, FAIL, FAIL),
    "two numbers": (first(lambda n, v, _: f"{n}: {v} or 5"), FAIL, FAIL, FAIL),
    "a letter behind": (first(lambda n, v, _: f"{n}: {v}k"), FAIL, FAIL, FAIL),
    "a span": (first(lambda n, v, _: f"{n}: {v}-5"), FAIL, FAIL, FAIL),
    "a span with a dash": (first(lambda n, v, _: f"{n}: {v}–5"), FAIL, FAIL, FAIL),
    "negative": (first(lambda n, v, _: f"{n}: -{v}"), FAIL, FAIL, FAIL),
    "zero": (first(lambda n, v, _: f"{n}: 0"), FAIL, FAIL, FAIL),
    "above the top": (first(lambda n, v, top: f"{n}: {top + 1:g}"), FAIL, FAIL, FAIL),
    "far above": (first(lambda n, v, _: f"{n}: {'9' * 400}"), FAIL, FAIL, FAIL),
    "an exponent": (first(lambda n, v, _: f"{n}: 1e400"), FAIL, FAIL, FAIL),
    "nan": (first(lambda n, v, _: f"{n}: nan"), FAIL, FAIL, FAIL),
    "infinity": (first(lambda n, v, _: f"{n}: inf"), FAIL, FAIL, FAIL),
    "N/A": (first(lambda n, v, _: f"{n}: N/A"), FAIL, FAIL, FAIL),
    "a word": (first(lambda n, v, _: f"{n}: four"), FAIL, FAIL, FAIL),
    "a comma": (first(lambda n, v, _: f"{n}: {v},5"), FAIL, FAIL, FAIL),
    "an equals sign": (first(lambda n, v, _: f"{n} = {v}"), FAIL, FAIL, FAIL),
    "a table": (each(lambda n, v, _: f"| {n} | {v} |"), FAIL, FAIL, FAIL),
    "wide digits": (each(lambda n, v, _: f"{n}: {chr(0xFF10 + v)}"), OK, OK, OK),
    "a wide colon": (each(lambda n, v, _: f"{n}： {v}"), FAIL, OK, OK),
    "lower case": (each(lambda n, v, _: f"{n.lower()}: {v}"), FAIL, OK, OK),
    "another order": (lambda lines, _: "\n".join(f"{n}: {v}" for n, v in lines[::-1]), OK, OK, OK),
    "no reason": (whole(lambda text, _: text.partition("\n")[2]), OK, OK, OK),
    "chatter before": (whole(lambda text, _: "Okay! Here are my scores.\n\n" + text), OK, OK, OK),
    "chatter behind": (whole(lambda text, _: text + "\n\nShall I look at another clip?"), OK, OK, OK),
    "in a fence": (whole(lambda text, _: f"```\n{text}\n```"), OK, OK, OK),
    "a thought": (whole(lambda text, _: f"<think>It may be a 2: 3.</think>\n{text}"), OK, OK, OK),
    "scores in a thought": (whole(lambda text, _: f"<think>\n{text}\n</think>\n{text}"), FAIL, OK, OK),
    # Kiwi's parser knows no thoughts: what is thought aloud counts.
    "an endless thought": (whole(lambda text, _: f"<think>\n{text}"), OK, FAIL, FAIL),
    "a leaked template": (whole(lambda text, _: "<|im_start|> assistant" + text), OK, OK, OK),
    "a token at the start": (whole(lambda text, _: f"<|im_start|>{text}"), OK, OK, OK),
    "tokens in front": (each(lambda n, v, _: f"<|im_start|>{n}: {v}"), FAIL, OK, OK),
    "a token at the end": (whole(lambda text, _: f"{text}<|im_end|>"), FAIL, OK, OK),
    "a null character": (whole(lambda text, _: f"{text}\0"), FAIL, OK, OK),
    "an axis is missing": (whole(lambda text, _: text.rpartition("\n")[0]), FAIL, FAIL, FAIL),
    "cut before the last number": (whole(lambda text, _: text.rpartition(" ")[0]), FAIL, FAIL, FAIL),
    "cut in a name": (whole(lambda text, lines: text[: text.find(lines[0][0]) + 5]), FAIL, FAIL, FAIL),
    "twice": (whole(lambda text, _: f"{text}\n{text}"), FAIL, FAIL, FAIL),
    "a second opinion": (whole(lambda text, lines: f"{text}\n{lines[0][0]}: 5"), FAIL, FAIL, FAIL),
    "the video's text in the reason": (
        lambda lines, top: f'Brief reasoning: a sign reads "{lines[0][0]}: {top:g}".\n'
        + "\n".join(f"{name}: {value}" for name, value in lines),
        OK, OK, OK,
    ),
    "the video's text on its own line": (
        lambda lines, top: f"Brief reasoning: a sign reads\n{lines[0][0]}: {top:g}\n"
        + "\n".join(f"{name}: {value}" for name, value in lines),
        FAIL, FAIL, FAIL,
    ),
    "the video's text and nothing else": (
        lambda lines, top: f"Brief reasoning: a sign reads\n{lines[0][0]}: {top:g}",
        FAIL, FAIL, FAIL,
    ),
    "a refusal": (lambda *_: "I'm sorry, but I can't help with that.", FAIL, FAIL, FAIL),
    "a refusal with a number": (lambda *_: "I can rate 0 of 2 videos.", FAIL, FAIL, FAIL),
    "nothing": (lambda *_: "", FAIL, FAIL, FAIL),
    "blanks": (lambda *_: " \n\t\n" * 900, FAIL, FAIL, FAIL),
    "JSON": (lambda lines, _: json.dumps(dict(lines)), FAIL, FAIL, FAIL),
    "without end": (whole(lambda text, _: text + "\nso" * 9000), FAIL, FAIL, FAIL),
}  # fmt: skip
assert len(HOSTILE) * len(VALUES) * len(LINES) >= 300


@pytest.mark.parametrize("attack", HOSTILE)
@pytest.mark.parametrize("which", range(len(LINES)), ids=[p.name for p in LINES])
@pytest.mark.parametrize("values", VALUES, ids=str)
def test_a_hostile_reply_gives_its_scores_or_none(attack, which, values):
    protocol, (write, *verdicts) = LINES[which], HOSTILE[attack]
    lines = list(zip(protocol.axes.values(), values, strict=True))
    reply = write(lines, protocol.scale[1])
    if verdicts[which] is FAIL:
        with pytest.raises(Unparsable):
            protocol.parse(reply, "all", "")
    else:
        assert protocol.parse(reply, "all", "") == dict(zip(protocol.axes, values, strict=True))


@pytest.mark.parametrize(
    "text, kiwi, rvedit, vera", [("4.4", 4, 4, 4.4), ("4.5", 4, 5, 4.5), ("2.50", 2, 3, 2.5)]
)
def test_decimals_as_each_paper_reads_them(text, kiwi, rvedit, vera):
    for protocol, expected in zip(LINES, (kiwi, rvedit, vera), strict=True):
        reply = "\n".join(f"{label}: {text}" for label in protocol.axes.values())
        assert set(protocol.parse(reply, "all", "").values()) == {expected}


def test_rvedit_rounds_before_it_tests_the_range():
    reply = "\n".join(f"{label}: {{}}" for label in PROTOCOLS["rvedit"].axes.values())
    assert PROTOCOLS["rvedit"].parse(reply.format(0.6, 100.4, 50), "all", "") == {
        "IC": 1,
        "CF": 100,
        "VQ": 50,
    }
    for outside in (0.4, 100.5):
        with pytest.raises(Unparsable):
            PROTOCOLS["rvedit"].parse(reply.format(outside, 50, 50), "all", "")


def test_an_ampersand_may_be_written_out():
    one = replace(PROTOCOLS["rvedit"], axes={"CF": "Consistency & Detail Fidelity"})
    for name in ("Consistency and Detail Fidelity", "Consistency &amp; Detail Fidelity"):
        assert score_lines(f"{name}: 70", one) == {"CF": 70}


GOOD = '{"IA_score": 8.5, "reasoning": "it is {there}"}'
MIVE = {
    "plain": (GOOD, 8.5),
    "in a fence": (f"```json\n{GOOD}\n```", 8.5),
    "chatter around": (f"Sure! {GOOD} Anything else?", 8.5),
    "braces before": (f"{{not json}} {GOOD}", 8.5),
    "tokens around": (f"<|im_start|>{GOOD}<|im_end|>", 8.5),
    "a thought": (f'<think>{{"IA_score": 1}}</think>{GOOD}', 8.5),
    "whole": ('{"IA_score": 9}', 9),
    "the ends": ('{"IA_score": 0.0}', 0),
    "the top": ('{"IA_score": 10}', 10),
    "another object": ('{"CC_score": 3} {"IA_score": 7.25}', 7.25),
    "the video's text in the reason": ('{"IA_score": 2, "reasoning": "it reads \\"IA_score\\": 10"}', 2),
    "the video's text before": ('A sign reads {"IA_score": 10}. {"IA_score": 2}', None),
    "an object in the reason": ('{"IA_score": 2, "reasoning": {"IA_score": 10}}', 2),
    "another axis": ('{"CC_score": 8}', None),
    "nested": ('{"scores": {"IA_score": 8}}', None),
    "a list": ('{"IA_score": [8]}', None),
    "a string": ('{"IA_score": "8.5"}', None),
    "true": ('{"IA_score": true}', None),
    "null": ('{"IA_score": null}', None),
    "NaN": ('{"IA_score": NaN}', None),
    "Infinity": ('{"IA_score": Infinity}', None),
    "above": ('{"IA_score": 10.01}', None),
    "below": ('{"IA_score": -0.1}', None),
    "huge": ('{"IA_score": ' + "9" * 6000 + "}", None),
    "an exponent": ('{"IA_score": 1e400}', None),
    "a key twice": ('{"IA_score": 3, "IA_score": 10}', None),
    "two objects": ('{"IA_score": 8} {"IA_score": 9}', None),
    "cut": (GOOD[:-20], None),
    "single quotes": ("{'IA_score': 8}", None),
    "a comma too much": ('{"IA_score": 8,}', None),
    "no JSON": ("IA_score: 8", None),
    "a refusal": ("I cannot watch videos.", None),
    "nothing": ("", None),
    "deep": ('{"a":' * 3000, None),
    "endless thought": (f"<think>{GOOD}", None),
}


@pytest.mark.parametrize("reply, expected", MIVE.values(), ids=MIVE)
def test_mive_reads_one_number_of_one_object(reply, expected):
    if expected is None:
        with pytest.raises(Unparsable):
            PROTOCOLS["mive"].parse(reply, "IA", "")
    else:
        assert PROTOCOLS["mive"].parse(reply, "IA", "") == {"IA": expected}


@pytest.mark.parametrize(
    "reply, expected",
    [
        ("Good.\nPrompt Compliance: 4\nSeamlessness: 3\nPhysics: 3", 3.33),
        # The published parser's flaws: a time and a ratio count, and bold numbers do not.
        ("Flicker at 0:05 in a 16:9 video.\nCompliance: 4\nSeamlessness: 3\nPhysics: 3", 4.8),
        ("Good.\nCompliance: **4**\nSeamlessness: 4\nPhysics: 3", 3.5),
        ("Score: 4.25", 4.25),
        ("Score: 7", None),
        ("Score: 0", None),
        ("Score: " + "9" * 500, None),
        ("4, 3 and 3", None),
        ("I cannot help with that.", None),
        ("", None),
    ],
)
def test_the_official_scorer_is_kept_with_its_flaws(reply, expected):
    protocol = PROTOCOLS["openve_official"]
    if expected is None:
        with pytest.raises(Unparsable):
            protocol.parse(reply, "all", "")
    else:
        assert protocol.parse(reply, "all", "") == {"score": expected}


WORDS = st.sampled_from(
    [
        "Instruction Compliance",
        "Spatial composition",
        '"IA_score"',
        "<|im_end|>",
        "<think>",
        "</think>",
        "1e9",
    ]
    + ["nan", "**", *":.-{}：٤45 \n"]
)


@settings(deadline=None, max_examples=150)
@given(st.one_of(st.text(max_size=300), st.lists(WORDS, max_size=60).map("".join)))
def test_any_text_gives_whole_scores_in_range_or_none(reply):
    for protocol in ALL:
        for call in protocol.calls:
            try:
                scores = protocol.parse(reply, call, "change the background to blue clouds")
            except Unparsable:
                continue
            low, high = protocol.scale
            assert set(scores) == ({call} if call in protocol.axes else set(protocol.axes))
            assert all(low <= value <= high and math.isfinite(value) for value in scores.values())


# --- what is shown and asked ---------------------------------------------------------------------


def test_which_frames_are_shown():
    assert evenly(5, 81) == [0, 20, 40, 60, 80]
    assert evenly(5, 9) == [0, 2, 4, 6, 8]
    assert evenly(40, 3) == [0, 1, 2] and evenly(5, 1) == [0]
    assert one_a_second(81, 16) == [0, 16, 32, 48, 64, 80]
    assert one_a_second(5, 2.3) == [0, 2, 4] and one_a_second(1, 8) == [0]
    assert len(PROTOCOLS["mive"].chosen(121, 24)) == 40


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_source_then_edit_and_the_instruction_word_for_word(protocol):
    words = "add a {axis} ring, {edit_prompt} and {category}"
    shown = case(category=category_of(protocol), instruction=words)
    for call in protocol.calls:
        messages = protocol.messages(shown, call)
        parts = [part for _, parts in messages for part in parts]
        texts = [part for part in parts if isinstance(part, str)]
        frames = [part for part in parts if not isinstance(part, str)]
        assert sum(words in text for text in texts) == 1
        chosen = protocol.chosen(9, 8.0)
        expected = [*(shown.source[t] for t in chosen), *(shown.edited[t] for t in chosen)]
        assert all(torch.equal(a, b) for a, b in zip(frames, expected, strict=True))
        assert [role for role, _ in messages] == (
            ["system", "user"] if protocol.rubric_is_system else ["user"]
        )
        # Nothing of the template is left over, and what the reply is read by is asked for.
        assert "{" not in texts[0].replace(words, "").replace('{"', "")
        asked = [f"{call}_score"] if protocol.asked else list(protocol.axes.values())
        assert protocol.name == "openve_official" or all(name in texts[0] for name in asked)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_every_category_has_a_rubric_of_its_own_and_no_other_is_taken(protocol):
    rubrics = {rubric(protocol, case(category=c)) for c in protocol.categories}
    assert len(rubrics) == (1 if protocol.name == "vera_vqa" else len(protocol.categories))
    if protocol.categories:
        with pytest.raises(UserError, match="haircut"):
            protocol.messages(case(category="haircut"), protocol.calls[0])


def test_only_mive_is_shown_the_reference():
    reference = torch.zeros(3, 8, 12)
    for protocol in PROTOCOLS.values():
        with_it, without = (
            protocol.messages(case(category=category_of(protocol), reference=r), protocol.calls[0])
            for r in (reference, None)
        )
        count = [sum(not isinstance(p, str) for _, parts in m for p in parts) for m in (with_it, without)]
        assert count[0] - count[1] == (protocol.name == "mive")


def test_mive_asks_once_for_each_axis():
    protocol = PROTOCOLS["mive"]
    prompts = [rubric(protocol, case(), call) for call in protocol.calls]
    assert protocol.calls == ("IA", "CC", "TS", "PR", "VA", "SC") and len(set(prompts)) == 6


def test_rubrics_differ_and_a_changed_one_has_another_name():
    assert len({protocol.rubric for protocol in ALL}) == len(ALL)
    rvedit = PROTOCOLS["rvedit"]
    assert replace(rvedit, decided="nothing").rubric == rvedit.rubric
    for change in ({"attempts": 9}, {"prompt": rvedit.prompt + "!"}, {"categories": {}}, {"frames": 4}):
        assert replace(rvedit, **change).rubric != rvedit.rubric


def test_the_toy_question_has_a_true_answer():
    asked = question_and_answer("add a red striped ring at the top left moving right with a shadow")
    assert asked == ("what is at the top left ?", "a red striped ring moving right")
    asked = question_and_answer("change the background to blue clouds")
    assert asked == ("what is the background ?", "blue clouds")
    with pytest.raises(UserError, match="haircut"):
        question_and_answer("give it a haircut")


def test_toy_answers_count_right_words_at_their_place():
    words = "add a red striped ring at the top left moving right"
    scores = {
        "a red striped ring moving right": 1.0,
        "A red striped ring, moving left.": 0.8333,
        "<|im_start|> assistanta red striped ring moving right<|im_end|>": 1.0,
        "a red ring moving right": 0.3333,
        "blue": 0.0,
    }
    for reply, expected in scores.items():
        assert TOY_VQA.parse(reply, "all", words) == {"words": expected}
    with pytest.raises(Unparsable):
        TOY_VQA.parse(" ?", "all", words)


# --- exact means ---------------------------------------------------------------------------------


def test_means_are_exact_and_rounded_as_people_do():
    values = [Decimal("2.67"), Decimal("2.68")]
    assert mean(values) == Decimal("2.675")
    assert half_up(mean(values), 2) == Decimal("2.68") != Decimal(repr(round(2.675, 2)))
    assert half_up(Decimal("2.5"), 0) == 3
