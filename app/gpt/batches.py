"""The cheap lane: rows that may wait go to the provider's Batch API, at half the price. The job `analysis-batch`.

Every step is noted in the ledger before the next, under a name that both sides know. So whoever dies in between, the
next run finds out how far it came: a batch that was made but not noted is found by its name at the provider; one that
was not made gives its rows back. What a batch answers may be read twice; it is written and paid once.

Source: OpenAI's guide "Batch API", and the reference's "Batch" and "Files".
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import structlog

from app.database import Database
from app.errors import Halted, LeaseLost, Permanent, RateLimited, TobanError, Transient
from app.gpt.analyst import ANSWER_TOKENS, as_text, counted, estimated_tokens, row_of
from app.gpt.answers import SCHEMA_LEVEL, completion_of
from app.gpt.batch_api import BatchApi, Line, ending, had_no_turn, line_of
from app.gpt.chat import build_chat
from app.gpt.failures import CallFailed, Refused, Usage, refused
from app.gpt.prices import cost
from app.gpt.verdict import BadVerdict, Verdict, parse
from app.ledger import Attempt
from app.services import Services
from app.settings import Settings
from app.work import end_badly, hold

if TYPE_CHECKING:
    from openai.types import Batch

log = structlog.get_logger("toban.gpt")

SOURCE, QUEUE = "analysis", "gpt"
DIRECT = {"direct": True}
"""An item's parameter once it has left the lane."""

_LEAST = 50  # rows; fewer go together only after
_GATHER = timedelta(minutes=10)
_MOST = 1000  # rows of one batch; the provider takes 50,000, but prompts and answers have to fit into this memory
_BATCHES = 10  # that one run sends
_BUSY = timedelta(minutes=10)  # for one look at a batch, and for sending one
_PAUSE = timedelta(minutes=10)  # after a batch that could not be sent
# A row leaves the lane so long before its deadline: cancelling a batch takes up to ten minutes.
_LEAD_SHARE, _LEAD_LEAST = 0.1, timedelta(minutes=15)
_OVER = 26 * 3600  # seconds; a batch that nobody waits for and that can't be seen is given up
_ENDED = {"completed", "expired", "cancelled", "failed"}


@dataclass
class Round:
    """What one run came to: rows sent, answered, and back to be asked one by one; `held`: what the queue waits for."""

    sent: int = 0
    answered: int = 0
    left: int = 0
    held: str | None = None

    def __str__(self) -> str:
        told = f"{self.sent} rows sent in batches, {self.answered} answered, {self.left} back to be asked one by one"
        return f"{told}; held: {self.held}" if self.held else told


def stay(deadline: timedelta) -> timedelta:
    """How long a row may be in the lane; at least half of its deadline."""
    return deadline - min(max(deadline * _LEAD_SHARE, _LEAD_LEAST), deadline / 2)


def opened_before(services: Services) -> datetime | None:
    """What claims of the direct lane take: rows that have waited for longer; None: all.

    A row that was not sent within half of its stay goes direct, so that every batch has the other half.
    """
    gpt = services.settings.gpt
    if gpt.analysis_deadline is None or gpt.offline:
        return None
    return datetime.now(UTC) - stay(gpt.analysis_deadline) / 2


def run_batches(services: Services) -> Round:
    """Look after the batches that are out, then send what has gathered.

    Raises what the provider's trouble is translated into, unless it holds the queue and is told there; what was done
    until then is done.
    """
    done = Round()
    if services.settings.gpt.offline:
        return done  # what is out comes back at its deadline
    lane = _Lane(services, done)
    try:
        trouble = lane.look_after()
        for _ in range(_BATCHES):
            if not lane.send():
                break
        if trouble:
            raise trouble
    except (Halted, RateLimited) as error:
        hold(services.ledger, QUEUE, error)
        done.held = str(error)
    finally:
        lane.close()
    return done


def forget_leftovers(settings: Settings, database: Database) -> int:
    """Delete the files that ended batches have left at the provider; returns how many.

    Raises `TobanError` where the provider can't be asked.
    """
    known = database.call("toban_batches_known")
    if settings.gpt.offline or not (known["out"] or known["ended"]):
        return 0
    provider = BatchApi(build_chat(settings.gpt))
    try:
        return provider.forget_leftovers(known["out"], known["ended"])
    except CallFailed as failed:
        raise failed.error from failed
    finally:
        provider.close()


class _Lane:
    def __init__(self, services: Services, done: Round) -> None:
        gpt = services.settings.gpt
        self._services = services
        self._call = services.database.call
        self._gpt = gpt
        self._zone = services.settings.audio.device_timezone
        self._secret = gpt.openai_api_key.get_secret_value() if gpt.openai_api_key else ""
        self._done = done

    @cached_property
    def _provider(self) -> BatchApi:
        # The client library takes a second and some memory, which a job that has nothing to do should not.
        return BatchApi(build_chat(self._gpt))

    def close(self) -> None:
        if "_provider" in self.__dict__:
            self._provider.close()

    # --- out -------------------------------------------------------------------------------------------------------

    def send(self) -> bool:
        """Send one batch of what has gathered, if it is enough; false: there is nothing more to send now.

        Raises `TobanError`.
        """
        deadline = self._gpt.analysis_deadline
        if deadline is None:
            return False
        batch = self._call(
            "toban_open_batch",
            source=SOURCE,
            queue=QUEUE,
            model=self._gpt.openai_model,
            limit=_MOST,
            least=_LEAST,
            patience=min(_GATHER, stay(deadline) / 4).total_seconds(),
            pause=_PAUSE.total_seconds(),
            stay=stay(deadline).total_seconds(),
            deadline=deadline.total_seconds(),
            busy=_BUSY.total_seconds(),
            max_attempts=self._services.settings.ledger.max_attempts,
            zone=self._zone,
        )
        if batch["batch"] is None:
            return False
        number, items = int(batch["batch"]), {item["id"]: item for item in batch["items"]}
        prompts = {item: str(items[item]["row"]["prompt"]) for item in items}
        blank = [item for item, prompt in prompts.items() if not prompt.strip()]
        sent, over = self._begin(number, {item: prompts[item] for item in items if item not in blank})
        self._leave(number, blank, direct=True)  # there they are told what is wrong
        # They stay in the lane: the budget may allow them before their time is up.
        self._leave(number, sorted(items.keys() - set(blank) - set(sent)), direct=False)
        if sent:
            model = self._gpt.openai_model
            lines = [line_of(_name(items[item]), prompts[item], model) for item in sent]
            self._submit(number, batch["uid"], lines)
            self._done.sent += len(sent)
            log.info("batch.sent", batch=number, rows=len(sent))
        else:
            self._end(number, "none of its rows can be sent now", direct=False)
        if over:
            raise Halted(over["reason"], "budget", float(over["seconds"]))
        return len(items) == _MOST

    def _begin(self, number: int, prompts: Mapping[int, str]) -> tuple[Sequence[int], Mapping[str, Any] | None]:
        """Note the calls: the items that the budget allows, and why not the others, if it does not allow all."""
        estimates = {
            item: cost(
                self._gpt.openai_model, estimated_tokens(prompt), 0, ANSWER_TOKENS, self._gpt.llm_prices, batch=True
            )
            for item, prompt in prompts.items()
        }
        noted = self._call(
            "toban_begin_batch",
            batch=number,
            calls=[{"id": item, "cost": as_text(estimate)} for item, estimate in estimates.items()],
            zone=self._zone,
            daily=as_text(self._gpt.llm_budget_daily),
            monthly=as_text(self._gpt.llm_budget_monthly),
        )
        return noted["sent"], noted.get("over")

    def _submit(self, number: int, uid: str, lines: Sequence[str]) -> None:
        """Raises `TobanError` where the provider does not take it."""
        file = None
        try:
            file = self._provider.upload(f"toban-{uid}.jsonl", "\n".join(lines).encode())
            made = self._provider.create(file, uid)
        except CallFailed as failed:
            # Without any answer it may have been made all the same: the next look finds out, by its name.
            if file is None or (failed.billed is False and failed.outcome != "server_error"):
                self._provider.forget(file)
                # What the provider can't do at all is asked one by one; what it can't do now may wait.
                self._end(number, str(failed.error), direct=isinstance(failed.error, Permanent))
            raise failed.error from failed
        if not self._call("toban_batch_submitted", batch=number, provider_id=made.id)["submitted"]:
            with suppress(CallFailed):  # this took so long that somebody else gave it up
                self._provider.cancel(made.id)

    # --- back ------------------------------------------------------------------------------------------------------

    def look_after(self) -> TobanError | None:
        """See how each batch gets on; returns what kept it from seeing the first that could not be seen."""
        trouble: TobanError | None = None
        after = 0
        while batch := self._call("toban_take_batch", source=SOURCE, busy=_BUSY.total_seconds(), after=after)["batch"]:
            after = batch["id"]
            try:
                self._look(batch)
            except CallFailed as failed:
                trouble = trouble or failed.error
                log.warning("batch.unseen", batch=after, reason=str(failed.error))
                hold(self._services.ledger, QUEUE, failed.error)
                if batch["out"] or batch["age"] < _OVER:
                    self._call("toban_note_batch", batch=after, message=str(failed.error))
                else:
                    self._end(after, str(failed.error), direct=True, lost=True)
        return trouble

    def _look(self, batch: Mapping[str, Any]) -> None:
        number = batch["id"]
        theirs = self._provider.find(batch["provider_id"], batch["uid"], batch["age"])
        if theirs is None:
            if batch["provider_id"]:
                self._end(number, "the provider knows it no more", direct=True, lost=True)
            else:
                self._end(number, "it was never sent", direct=False)
            return
        if batch["provider_id"] is None:  # whoever made it died before noting it
            self._call("toban_batch_submitted", batch=number, provider_id=theirs.id)
        if theirs.status in _ENDED:
            self._take(batch, theirs)
        elif batch["due"] and batch["state"] != "cancelling":
            log.info("batch.leaves", batch=number, rows=batch["out"])
            self._provider.cancel(theirs.id)
            self._call("toban_note_batch", batch=number, state="cancelling", message="cancelling")
        else:
            self._call("toban_note_batch", batch=number, message=theirs.status)

    def _take(self, batch: Mapping[str, Any], theirs: "Batch") -> None:
        """Take the answers of a batch that has ended; the rows without one leave it."""
        number = batch["id"]
        items = {_name(item): item for item in self._call("toban_batch_items", batch=number)["items"]}
        answered = unreadable = 0
        for file in filter(None, (theirs.output_file_id, theirs.error_file_id)):
            for line in self._provider.lines(file):
                if line is None:
                    unreadable += 1
                elif not had_no_turn(line) and (item := items.pop(str(line.get("custom_id")), None)):
                    answered += self._settle(item, line, batch["model"])
        if unreadable:
            log.warning("batch.unreadable", batch=number, lines=unreadable)
        self._end(number, ending(theirs), direct=True, lost=bool(unreadable))
        self._provider.forget(theirs.input_file_id, theirs.output_file_id, theirs.error_file_id)
        log.info("batch.ended", batch=number, status=theirs.status, answered=answered)
        self._done.answered += answered

    def _settle(self, item: Mapping[str, Any], line: Line, model: str) -> bool:
        """End one row, and its call, by its line of the answers; whether the row is completed.

        Raises `Transient` where the ledger is away: the next look goes on.
        """
        told, verdict, error = self._read(line, item["call"], model)
        if not item["out"]:
            self._tell({**told, "outcome": "unused"} if verdict else told)
            return False
        attempt = _attempt(item)
        ledger, facts = self._services.ledger, {"source": SOURCE, "key": attempt.key, "attempt": attempt.attempt}
        if verdict:
            result = {"row": row_of(verdict, told["model"]), "call": told}
            try:
                ledger.settle("toban_finish", attempt, result=result, error=None)
            except (LeaseLost, Permanent) as problem:  # the row changed just now; it can't be stored
                told["outcome"], error = "unused", problem
            else:
                return True
        self._tell(told)
        if error:
            try:
                end_badly(ledger, attempt, error, facts, datetime.now(UTC), DIRECT)
            except LeaseLost as lost:
                log.info("work.lost", **facts, reason=str(lost))
        return False

    def _read(self, line: Line, call: int, model: str) -> tuple[dict[str, Any], Verdict | None, TobanError | None]:
        """A line of the answers: how its call ended, as `toban_end_call` takes it; its verdict, or what is wrong."""
        told: dict[str, Any] = {"call": call, "model": model}
        answer = line.get("response")
        try:
            if not isinstance(answer, dict):
                why = "it timed out there" if Refused.read(0, line).code == "request_timeout" else "no reason is known"
                reason = f"{self._provider.host} did not answer this row of a batch: {why}"
                raise CallFailed("server_error", Transient(reason), billed=False)  # noqa: TRY301 - one end for all
            status, body = answer.get("status_code"), answer.get("body")
            # The prompt is not at hand; so none of the server's own words are repeated.
            private = [Refused.read(0, body).words]
            if isinstance(status, int) and status >= 400:
                raise refused(
                    Refused.read(status, body),
                    self._provider.host,
                    model,
                    headers={},
                    secret=self._secret,
                    private=private,
                    level=SCHEMA_LEVEL,
                )
            completion = completion_of(body, self._provider.host, model, secret=self._secret, private=private)
        except CallFailed as failed:
            told |= {"outcome": failed.outcome, "possibly_billed": failed.billed is None}
            told |= {"cost": "0"} if failed.billed is False else self._counted(model, failed.usage)
            return told, None, failed.error
        told |= self._counted(completion.model, completion.usage)
        try:
            verdict = parse(completion.text)
        except BadVerdict as wrong:
            return {**told, "outcome": wrong.outcome}, None, wrong
        return {**told, "outcome": "ok"}, verdict, None

    def _counted(self, model: str, usage: Usage | None) -> dict[str, Any]:
        return counted(model, usage, self._gpt.llm_prices, batch=True)

    def _tell(self, told: Mapping[str, Any]) -> None:
        """How a call ended; what the ledger can't note does not keep the other rows from being read."""
        try:
            self._call("toban_end_call", **told)
        except Permanent as error:
            log.warning("call.untold", call=told["call"], outcome=told["outcome"], reason=str(error))

    def _leave(self, number: int, items: Sequence[int], *, direct: bool) -> None:
        if items:
            left = self._call("toban_leave_batch", batch=number, ids=items, direct=direct)["left"]
            self._done.left += left if direct else 0

    def _end(self, number: int, message: str, *, direct: bool, lost: bool = False) -> None:
        """`direct`: where its rows go; `lost`: what it did not answer may have been billed."""
        left = self._call(
            "toban_end_batch",
            batch=number,
            message=message,
            direct=direct,
            lost=lost,
            days=self._services.settings.ledger.keep_calls_days,
        )["left"]
        self._done.left += left if direct else 0


def _name(item: Mapping[str, Any]) -> str:
    """What a row is called in a batch."""
    return f"{item['id']}-{item['attempt']}"


def _attempt(item: Mapping[str, Any]) -> Attempt:
    return Attempt(
        id=item["id"],
        attempt=item["attempt"],
        token=item["token"],
        tries=item["tries"],
        max_attempts=item["max_attempts"],
        run_id=None,
        key=item["key"],
        ref=item["ref"],
        params={},
        at=None,
        opened_at=datetime.fromisoformat(item["opened_at"]),
        row={},
        queue=QUEUE,
        timeout=None,
    )
