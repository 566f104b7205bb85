"""From a waiting `dashboard` row to the result that the ledger stores: ask, within pace and budget, check, describe."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from threading import Lock
from typing import Any

import structlog

from app.database import Database
from app.errors import BadAnswer, Halted, LeaseLost, Permanent, TobanError
from app.gpt import offline
from app.gpt.answers import Completion, Message
from app.gpt.chat import Chat, build_chat
from app.gpt.failures import CallFailed, Usage
from app.gpt.limiter import Limiter, build_limiter
from app.gpt.prices import PRICES, Price, cost
from app.gpt.verdict import BadVerdict, Verdict, parse
from app.settings import Settings
from app.work import Work

log = structlog.get_logger("toban.gpt")

# An answer that can't be used is asked for once more, with what was wrong with it.
_TIMES = 2
# How long a row waits for its turn at the shared pace before it gives its place in the worker to another.
_PATIENCE = timedelta(minutes=2)
# A spent budget is looked at again this soon, in case it was raised, seconds.
_NEXT_LOOK = 600.0
# For the estimate before a call: an English token has some 4 bytes, a Japanese one 3; an answer some 300 tokens.
_BYTES_PER_TOKEN = 3
ANSWER_TOKENS = 300


@dataclass(frozen=True)
class Judged:
    """A verdict and who gave it; `call`: how its call ended, as `toban_end_call` takes it (none offline)."""

    verdict: Verdict
    model: str
    call: dict[str, Any] | None = None


def analyse(work: Work) -> dict[str, Any]:
    """The verdict on the row's prompt, as columns of `dashboard`, and the call that it cost.

    Raises `Permanent` for a prompt that nobody can answer, `BadAnswer` for an answer that nobody can use, `Halted` when
    nothing can be asked now, `RateLimited` and `Transient` when it can be later.
    """
    judged = work.services.analyst.judge(work, work.row["prompt"] or "")
    row = row_of(judged.verdict, judged.model)
    return {"row": row, "call": judged.call} if judged.call else {"row": row}


def row_of(verdict: Verdict, model: str) -> dict[str, Any]:
    """A verdict as columns of `dashboard`."""
    fields, now = verdict.model_dump(), datetime.now(UTC).isoformat()
    return {**fields, "analysis_result": {**fields, "model_used": model}, "processed_at": now, "updated_at": now}


def estimated_tokens(*texts: str) -> int:
    """About how many tokens a model counts in `texts`."""
    return sum(len(text.encode()) for text in texts) // _BYTES_PER_TOKEN


def models(settings: Settings) -> set[str]:
    """The models that a row may ask for: the worker's own, and those whose price is known."""
    gpt = settings.gpt
    return {offline.MODEL} if gpt.offline else {gpt.openai_model, *gpt.llm_prices, *PRICES}


def counted(model: str, usage: Usage | None, own: Mapping[str, Price], *, batch: bool = False) -> dict[str, Any]:
    """Tokens and cost of a call, as far as they are known, as `toban_end_call` takes them; else the estimate stays."""
    if usage is None:
        return {"model": model}
    return {
        "model": model,
        "prompt_tokens": usage.prompt,
        "cached_tokens": usage.cached,
        "completion_tokens": usage.completion,
        "cost": as_text(cost(model, usage.prompt, usage.cached, usage.completion, own, batch=batch)),
    }


class Analyst:
    """Asks the language model that the settings name; without one, the offline analyser. Shared by all threads."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings.gpt
        self._broker = settings.broker
        self._zone = settings.audio.device_timezone
        self._database = database
        self._lock = Lock()  # what is made once is made by one thread

    @cached_property
    def _chat(self) -> Chat:
        return build_chat(self._settings)

    @cached_property
    def _limiter(self) -> Limiter:
        return build_limiter(self._settings, self._broker)

    @cached_property
    def _offline(self) -> offline.Offline:
        return offline.Offline()

    def close(self) -> None:
        """Give up what is still asked, and the connections."""
        with self._lock:
            if "_chat" in self.__dict__:
                self._chat.close()
            if "_limiter" in self.__dict__:
                self._limiter.close()

    def judge(self, work: Work, prompt: str) -> Judged:
        """What the model makes of `prompt`; see `analyse` for what it raises."""
        if not prompt.strip():
            raise Permanent("the row's prompt is empty; write one, or leave it null for a row that is not to be judged")
        if self._settings.offline:
            with self._lock:
                analyser = self._offline
            return Judged(analyser.analyse(prompt), offline.MODEL)
        model = str(work.params.get("model") or self._settings.openai_model)
        timeout = work.timeout(self._settings.analysis_timeout)
        work.allow((_TIMES + 2) * (timeout + _PATIENCE))  # a server that knows no schema is asked up to twice more
        messages = [Message(role="user", content=prompt)]
        for last in (False, True):
            call, completion = self._answered(work, messages, model, timeout)
            told = {"call": call, **self._counted(completion.model, completion.usage)}
            told["latency_ms"] = round(completion.seconds * 1000)
            try:
                verdict = parse(completion.text)
            except BadVerdict as wrong:
                self._end({**told, "outcome": wrong.outcome})
                if last:
                    raise BadAnswer(f"the answer of {model} can't be used, asked twice: {wrong}") from None
                messages += [
                    Message(role="assistant", content=completion.text),
                    Message(role="user", content=f"That can't be used: {wrong}."),
                ]
            else:
                # The call ends with the row, in one transaction; or, where that can't be, alone.
                work.if_unwritten = lambda told=told: self._end({**told, "outcome": "unused"})
                return Judged(verdict, completion.model, {**told, "outcome": "ok"})
        raise AssertionError("the loop returns or raises")

    def _answered(self, work: Work, messages: list[Message], model: str, timeout: timedelta) -> tuple[int, Completion]:
        """A call's number and its answer; a server that turns out to know no schema is asked again at once."""
        while True:
            try:
                return self._ask(work, messages, model, timeout)
            except CallFailed as failed:
                if failed.outcome != "schema_unsupported":
                    raise failed.error from failed

    def _ask(self, work: Work, messages: list[Message], model: str, timeout: timedelta) -> tuple[int, Completion]:
        """One call, when its turn comes and the budget allows it. Raises `CallFailed`."""
        with self._lock:
            chat, limiter = self._chat, self._limiter
        tokens = estimated_tokens(*(message["content"] for message in messages))
        with work.phase("waiting for its turn", _PATIENCE):
            limiter.acquire(tokens + ANSWER_TOKENS, watch=work.check, patience=_PATIENCE.total_seconds())
        call = self._begin(work, model, tokens)
        with work.phase("asking the model", timeout):
            try:
                completion = chat.complete(messages, model=model, timeout=timeout, watch=work.check)
            except CallFailed as failed:
                limiter.observe(failed.limits)
                self._end(self._failed(call, model, failed))
                raise
            except TobanError:  # the lease was lost, or the worker stops
                self._end({"call": call, "outcome": "cancelled", "possibly_billed": True})
                raise
        limiter.observe(completion.limits)
        return call, completion

    def _begin(self, work: Work, model: str, tokens: int) -> int:
        """Note that a call is about to be sent; returns its number."""
        gpt = self._settings
        answer = self._database.call(
            "toban_begin_call",
            **work.attempt.fence,
            model=model,
            cost=as_text(cost(model, tokens, 0, ANSWER_TOKENS, gpt.llm_prices)),
            zone=self._zone,
            daily=as_text(gpt.llm_budget_daily),
            monthly=as_text(gpt.llm_budget_monthly),
        )
        if answer.get("lost"):
            raise LeaseLost("another attempt owns the item")
        if over := answer.get("over"):
            raise Halted(over["reason"], "budget", min(float(over["seconds"]), _NEXT_LOOK))
        return int(answer["call"])

    def _failed(self, call: int, model: str, failed: CallFailed) -> dict[str, Any]:
        told: dict[str, Any] = {
            "call": call,
            "outcome": failed.outcome,
            "possibly_billed": failed.billed is None,
            "latency_ms": round(failed.seconds * 1000),
        }
        return told | ({"cost": "0"} if failed.billed is False else self._counted(model, failed.usage))

    def _counted(self, model: str, usage: Usage | None) -> dict[str, Any]:
        return counted(model, usage, self._settings.llm_prices)

    def _end(self, told: dict[str, Any]) -> None:
        """That it can't be told is no error: the call counts as lost, and as possibly billed, when somebody looks."""
        try:
            self._database.call("toban_end_call", **told)
        except TobanError as error:
            log.warning("call.untold", call=told["call"], outcome=told["outcome"], reason=str(error))


def as_text(amount: Decimal | None) -> str | None:
    """An amount as JSON carries it without loss."""
    return None if amount is None else str(amount)
