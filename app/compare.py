"""How much two results of one row agree, for shadow mode."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["identical", "near", "different", "unmatched"]

NEAR_TEXT = 0.10
"""Error rate up to which two transcripts say the same."""
NEAR_SCORE = 10.0
"""Points up to which two scores, each from -100 to 100, say the same."""

# Hiragana, katakana and Han: written without spaces, so that words can't be counted.
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


@dataclass(frozen=True)
class Compared:
    """`ours`: what is kept of our result; `difference`: in the source's unit, None where there is none to tell."""

    verdict: Verdict
    ours: Mapping[str, Any]
    difference: float | None = None


def transcripts(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Compared:
    """`theirs`: {text}; `ours`: a result of `transcribe`. The difference is an error rate; see `error_rate`."""
    kept = {"text": ours["text"], "model": ours["model"], "engine": ours["engine"]}
    text = theirs["text"]
    if text is None:
        return Compared("unmatched", kept)
    if text.strip() == ours["text"].strip():
        return Compared("identical", kept, 0.0)
    rate = error_rate(text, ours["text"])
    return Compared("near" if rate <= NEAR_TEXT else "different", kept, round(rate, 4))


def verdicts(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Compared:
    """`theirs`: columns of `dashboard`; `ours`: a result of `analyse`. The difference is in points of the score.

    Two summaries never have the same words, so the scores alone are compared. A row without a score had an answer that
    could not be read.
    """
    kept = {name: ours["row"][name] for name in ("vibe_score", "summary", "behavior", "analysis_result")}
    score = theirs["vibe_score"]
    if score is None:
        return Compared("unmatched", kept)
    points = abs(float(score) - float(kept["vibe_score"]))
    verdict: Verdict = "identical" if points == 0 else "near" if points <= NEAR_SCORE else "different"
    return Compared(verdict, kept, points)


def error_rate(reference: str, hypothesis: str) -> float:
    """Word error rate; for languages written without spaces, character error rate. 0 is equal; may exceed 1.

    Case, punctuation, spacing and the width of characters do not count.
    """
    import jiwer  # where nothing is compared, it need not be loaded

    said, heard = _plain(reference), _plain(hypothesis)
    if not said or not heard:
        return 0.0 if said == heard else 1.0
    if _UNSPACED.search(said + heard):
        return float(jiwer.cer(said.replace(" ", ""), heard.replace(" ", "")))
    return float(jiwer.wer(said, heard))


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))
