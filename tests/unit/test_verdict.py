"""What counts as a verdict, and what is told about what doesn't."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.gpt.verdict import SCHEMA, BadVerdict, Verdict, parse

GOOD = '{"summary": "昼食をとった。", "vibe_score": -30, "behavior": "eating"}'
# Keywords of OpenAI's "Supported schemas", without those that Azure and fine-tuned models refuse.
STRICT = {"type", "properties", "required", "additionalProperties", "description", "enum", "items", "anyOf", "const"}


def with_score(score: str) -> str:
    return GOOD.replace("-30", score)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"\n ```json\n{GOOD}\n```\n",
        f"```\n{GOOD}```",
        f"<think>Is it -10? {{}}</think>\n{GOOD}",
        f"Here it is: {GOOD} Anything else?",
        f"\ufeff{GOOD}",
        GOOD.replace("}", ', "extra": [1]}'),
    ],
)
def test_one_object_is_found(text: str) -> None:
    assert parse(text) == Verdict(summary="昼食をとった。", vibe_score=-30.0, behavior="eating")


@pytest.mark.parametrize("score", ["100", "-100", "0", "-0.5", "1e2"])
def test_the_whole_range_is_taken(score: str) -> None:
    assert parse(with_score(score)).vibe_score == float(score)


@pytest.mark.parametrize("score", ["NaN", "Infinity", "-Infinity", "1e999", "100.1", "-101", "9" * 400, "9" * 5000])
def test_out_of_range(score: str) -> None:
    with pytest.raises(BadVerdict, match="vibe_score is not a number from -100 to 100") as told:
        parse(with_score(score))
    assert told.value.outcome == "out_of_range"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ("I would say it was fine.", "not valid JSON"),
        (GOOD[:20], "not valid JSON: Unterminated string"),
        ("[" * 5000, "not valid JSON"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("{}", "summary is missing; vibe_score is missing; behavior is missing"),
        (with_score('"-30"'), "vibe_score is not a number"),
        (with_score("true"), "vibe_score is not a number"),
        (with_score("null"), "vibe_score is not a number"),
        (GOOD.replace('"eating"', "[1]"), "behavior is not a string"),
        (GOOD.replace('"eating"', "[1]").replace("-30", "NaN"), "behavior is not a string"),
        (GOOD + " " * 70_000, "70"),
    ],
)
def test_no_verdict(text: str, reason: str) -> None:
    with pytest.raises(BadVerdict, match=reason) as told:
        parse(text)
    assert told.value.outcome == "invalid_json"


def test_what_cannot_be_stored_is_cleaned() -> None:
    verdict = parse(json.dumps({"summary": "a\0b\ud800c\x1b\n", "vibe_score": 1, "behavior": "x" * 50_000}))
    assert verdict.summary == "abc"
    assert len(verdict.behavior) == 4000
    assert verdict.behavior.endswith("…")
    verdict.model_dump_json().encode()


@given(st.text())
def test_no_text_does_anything_else(text: str) -> None:
    try:
        verdict = parse(text)
    except BadVerdict:
        return
    assert math.isfinite(verdict.vibe_score)


@given(st.text(st.characters(min_codepoint=0x3041, max_codepoint=0x3096), min_size=4))
def test_a_complaint_holds_no_word_of_the_answer(words: str) -> None:
    for text in (words, json.dumps({"summary": 1, "vibe_score": words, words: words}, ensure_ascii=False)):
        with pytest.raises(BadVerdict) as told:
            parse(text)
        assert words not in str(told.value) + repr(told.value)
    shown = repr(Verdict(summary=words, vibe_score=1, behavior=words))
    assert words not in shown


def test_the_schema_is_strict_and_of_the_model() -> None:
    properties = SCHEMA["properties"]
    assert set(SCHEMA["required"]) == set(properties) == set(Verdict.model_fields)
    assert SCHEMA["additionalProperties"] is False
    for part in (SCHEMA, *properties.values()):
        assert set(part) <= STRICT
