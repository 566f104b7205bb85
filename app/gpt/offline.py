"""The analyser that stands in for a model where neither a key nor a server is set: a word list, English only."""

import re
from functools import cached_property
from typing import TYPE_CHECKING

from app.errors import NotReady
from app.gpt.verdict import HIGHEST, Verdict

if TYPE_CHECKING:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

MODEL = "offline/vader"
_TRANSCRIPT = re.compile(r"<transcript>(.*?)</transcript>", re.DOTALL)
_SENTENCES = re.compile(r"(?<=[.!?。!?])\s*|\n+")
_LONGEST = 200_000  # characters looked at
_SUMMARY = 240  # characters


class Offline:
    """Judges English text by the words in it (VADER: Hutto and Gilbert, ICWSM 2014). Serves all threads."""

    def analyse(self, prompt: str) -> Verdict:
        """The verdict on the text between <transcript> and </transcript>, or on all of the prompt.

        The score is the mean of the sentences' compound scores. Raises `NotReady` if the library is missing.
        """
        found = _TRANSCRIPT.search(prompt)
        text = (found[1] if found else prompt)[:_LONGEST]
        sentences = [sentence.strip() for sentence in _SENTENCES.split(text) if sentence.strip()]
        scores = [float(self._vader.polarity_scores(sentence)["compound"]) for sentence in sentences]
        known = sum(character.isascii() and character.isalpha() for character in text)
        letters = sum(character.isalpha() for character in text)
        score = round(HIGHEST * sum(scores) / len(scores), 1) if scores else 0.0
        return Verdict(
            summary=_beginning(sentences),
            vibe_score=score + 0.0,  # not -0.0
            behavior=_label(score) if 2 * known >= letters > 0 else "not judged: the offline analyser knows English",
        )

    @cached_property
    def _vader(self) -> "SentimentIntensityAnalyzer":
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError:
            raise NotReady(
                "the offline analyser needs vaderSentiment; install it (it is in the extra `demo`), or set "
                "OPENAI_API_KEY"
            ) from None
        return SentimentIntensityAnalyzer()


def _beginning(sentences: list[str]) -> str:
    """The first sentences, as many as fit."""
    taken = ""
    for sentence in sentences:
        longer = f"{taken} {sentence}".strip()
        if len(longer) > _SUMMARY:
            break
        taken = longer
    return taken or "".join(sentences[:1])[: _SUMMARY - 1] + "…" if sentences else "nothing was said"


def _label(score: float) -> str:
    strength = abs(score)
    if strength < 5:
        return "neutral words"
    side = "positive" if score > 0 else "negative"
    return f"{'mostly' if strength >= 35 else 'somewhat'} {side} words"
