"""The cheap lane: rows that may wait go to the provider's Batch API, at half the price. The job `analysis-batch`.

Every step is noted in the ledger before the next, under a name that both sides know. So whoever dies in between, the
next run finds out how far it came: a batch that was made but not noted is found by its name at the provider; one that
was not made gives its rows back.

Source: OpenAI's guide "Batch API".
"""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import structlog

from app.errors import Permanent, TobanError, Transient
from app.gpt.analyst import ANSWER_TOKENS, estimated_tokens, row_of
from app.gpt.answers import Completion, Message, completion_of, request_body
from app.gpt.chat import Chat
from app.gpt.failures import CallFailed, Refused, Usage, refused
from app.gpt.prices import cost
from app.gpt.verdict import SCHEMA, BadVerdict, parse
from app.ledger import Attempt
from app.services import Services
from app.work import end_badly, hold

if TYPE_CHECKING:
    from openai.types import Batch

log = structlog.get_logger("toban.gpt")

SOURCE, QUEUE = "analysis", "gpt"
DIRECT = {"direct": True}
"""An item's parameter once it has left the lane."""

_LEAST = 50  # rows; fewer go together only after
_GATHER = timedelta(minutes=10)
_MOST = 2000  # rows of one batch; the provider takes 50,000, and one row's end costs some milliseconds
_BATCHES = 10  # of one run
_LEASE = timedelta(minutes=10)  # for one look at a batch, and for sending one
# Of rows that are being sent. Longer, so that whoever looks after a dead sender finds out whether they were.
_ROWS_LEASE = 4 * _LEASE
_TIMEOUT = timedelta(minutes=2)  # of one call: files have megabytes
_WINDOW = timedelta(hours=24)  # the only one that there is
# A row leaves the lane so long before its deadline: cancelling a batch takes up to ten minutes.
_LEAD_SHARE, _LEAD_LEAST = 0.1, timedelta(minutes=15)


@dataclass
class Round:
    """What one run came to: rows sent, answered, and back in the direct lane."""

    sent: int = 0
    answered: int = 0
    left: int = 0

    def __str__(self) -> str:
        return f"{self.sent} rows sent in batches, {self.answered} answered, {self.left} back to be asked one by one"


def lead(deadline: timedelta) -> timedelta:
    """How long before its deadline a row leaves the lane; never more than half of it."""
    return min(max(deadline * _LEAD_SHARE, _LEAD_LEAST), deadline / 2)


def opened_before(services: Services) -> datetime | None:
    """What claims of the direct lane take: rows that have waited for longer; None: all."""
    gpt = services.settings.gpt
    if gpt.analysis_deadline is None or gpt.offline:
        return None
    return datetime.now(UTC) - (gpt.analysis_deadline - lead(gpt.analysis_deadline))


def run_batches(services: Services) -> Round:
    """Look after the batches that are out, then send what has gathered.

    Raises what the provider's trouble is translated into; what was done until then is done.
    """
    done = Round()
    lane = _Lane(services)
    try:
        for batch in services.database.call("toban_batches", source=SOURCE, lease=_LEASE.total_seconds())["batches"]:
            lane.look(batch, done)
        for _ in range(_BATCHES):
            if not lane.send(done):
                break
    finally:
        lane.close()
    return done


class _Lane:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._call = services.database.call
        self._gpt = services.settings.gpt
        key = self._gpt.openai_api_key
        self._chat = Chat(self._gpt.base_url, key.get_secret_value() if key else None, SCHEMA)

    def close(self) -> None:
        self._chat.close()

    # --- out -------------------------------------------------------------------------------------------------------

    def send(self, done: Round) -> bool:
        """Send what has gathered, if it is enough; false: there is nothing more to send now."""
        deadline = self._gpt.analysis_deadline
        if deadline is None or self._gpt.offline:
            return False
        ledger = self._services.settings.ledger
        zone = self._services.settings.audio.device_timezone
        batch = self._call(
            "toban_open_batch",
            source=SOURCE,
            queue=QUEUE,
            model=self._gpt.openai_model,
            limit=_MOST,
            least=_LEAST,
            patience=min(_GATHER, deadline / 4).total_seconds(),
            lease=_ROWS_LEASE.total_seconds(),
            busy=_LEASE.total_seconds(),
            max_attempts=ledger.max_attempts,
            deadline=deadline.total_seconds(),
            lead=lead(deadline).total_seconds(),
            zone=zone,
        )
        if batch["batch"] is None:
            return False
        prompts = {item["id"]: str(item["row"]["prompt"]) for item in batch["items"]}
        noted = self._call(
            "toban_begin_batch",
            batch=batch["batch"],
            calls=[{"id": item, "cost": self._estimate(prompt)} for item, prompt in prompts.items()],
            zone=zone,
            daily=_text(self._gpt.llm_budget_daily),
            monthly=_text(self._gpt.llm_budget_monthly),
        )
        lines = [
            _line(item, prompts[item["id"]], self._gpt.openai_model)
            for item in batch["items"]
            if str(item["id"]) in noted["calls"]
        ]
        if lines:
            try:
                self._submit(batch["batch"], batch["uid"], lines)
            except CallFailed as failed:
                self._refused(batch["batch"], failed)
            done.sent += len(lines)
            log.info("batch.sent", batch=batch["batch"], rows=len(lines))
        else:
            self._call("toban_batch_state", batch=batch["batch"], state="ended", message="the budget allows none of it")
        done.left += len(batch["items"]) - len(lines)
        return len(batch["items"]) == _MOST and "over" not in noted

    def _submit(self, number: int, uid: str, lines: list[str]) -> None:
        content = io.BytesIO("\n".join(lines).encode())
        file = self._chat.call(
            lambda client: client.files.create(file=(f"toban-{uid}.jsonl", content), purpose="batch"),
            timeout=_TIMEOUT,
            watch=_go_on,
        )
        made = self._chat.call(
            lambda client: client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"toban_batch": uid},
            ),
            timeout=_TIMEOUT,
            watch=_go_on,
        )
        self._submitted(number, made)

    def _submitted(self, number: int, made: "Batch") -> None:
        self._call("toban_batch_submitted", batch=number, provider_id=made.id, seconds=_WINDOW.total_seconds())

    def _refused(self, number: int, failed: CallFailed) -> None:
        """The provider did not take a batch. Where it surely did not, its rows go back at once."""
        if failed.billed is False or isinstance(failed.error, Permanent):
            self._call("toban_batch_state", batch=number, state="ended", message=str(failed.error))
        hold(self._services.ledger, QUEUE, failed.error)
        raise failed.error from failed

    def _estimate(self, prompt: str) -> str | None:
        return _text(
            cost(self._gpt.openai_model, estimated_tokens(prompt), 0, ANSWER_TOKENS, self._gpt.llm_prices, batch=True)
        )

    # --- back ------------------------------------------------------------------------------------------------------

    def look(self, batch: Mapping[str, Any], done: Round) -> None:
        """See how one batch gets on, and take what it has brought."""
        try:
            theirs = self._theirs(batch)
            if theirs is None:
                return
            if theirs.status in {"completed", "expired", "cancelled", "failed"}:
                self._take(batch, theirs, done)
            elif batch["due"] and batch["state"] == "submitted":
                log.info("batch.leaves", batch=batch["id"])
                self._chat.call(lambda client: client.batches.cancel(theirs.id), timeout=_TIMEOUT, watch=_go_on)
                self._call("toban_batch_state", batch=batch["id"], state="cancelling")
            else:
                self._call("toban_batch_state", batch=batch["id"], message=theirs.status)
        except CallFailed as failed:
            if failed.outcome == "model_unknown":  # 404: the provider has forgotten it
                left = self._call("toban_batch_state", batch=batch["id"], state="ended", message="it is gone")["left"]
                done.left += left
                return
            raise failed.error from failed

    def _theirs(self, batch: Mapping[str, Any]) -> "Batch | None":
        """The provider's view of a batch; None: it never got it."""
        if provider_id := batch["provider_id"]:
            return self._chat.call(lambda client: client.batches.retrieve(provider_id), timeout=_TIMEOUT, watch=_go_on)
        page = self._chat.call(_listed, timeout=_TIMEOUT, watch=_go_on)
        for one in page:
            if (one.metadata or {}).get("toban_batch") == batch["uid"]:
                self._submitted(batch["id"], one)  # whoever made it died before noting it
                return one
        self._call("toban_batch_state", batch=batch["id"], state="ended", message="it was never sent")
        return None

    def _take(self, batch: Mapping[str, Any], theirs: "Batch", done: Round) -> None:
        items = {
            f"{item['id']}-{item['attempt']}": item
            for item in self._call("toban_batch_items", batch=batch["id"])["items"]
        }
        answered = 0
        for file in filter(None, (theirs.output_file_id, theirs.error_file_id)):
            for line in self._lines(file):
                if _unanswered(line):
                    continue  # the end of the batch gives it back
                if item := items.pop(str(line.get("custom_id")), None):
                    self._settle(item, line, batch["model"])
                    answered += 1
        left = self._call(
            "toban_batch_state", batch=batch["id"], state="ended", answered=answered, message=_ending(theirs)
        )["left"]
        log.info("batch.ended", batch=batch["id"], status=theirs.status, answered=answered, left=left)
        done.answered += answered
        done.left += left

    def _lines(self, file: str) -> Iterator[dict[str, Any]]:
        content = self._chat.call(lambda client: client.files.content(file), timeout=_TIMEOUT, watch=_go_on).content
        for line in content.splitlines():
            try:
                told = json.loads(line)
            except ValueError:
                log.warning("batch.unreadable", file=file)  # its row is one that is not answered
                continue
            if isinstance(told, dict):
                yield told

    def _settle(self, item: Mapping[str, Any], line: Mapping[str, Any], model: str) -> None:
        """End one row by its line of the output."""
        attempt = Attempt(
            id=item["id"], attempt=item["attempt"], token=item["token"], tries=item["tries"],
            max_attempts=item["max_attempts"], run_id=None, key=item["key"], ref=item["ref"], params={}, at=None,
            opened_at=datetime.fromisoformat(item["opened_at"]), row={}, queue=item["queue"], timeout=None,
        )  # fmt: skip
        facts = {"source": SOURCE, "key": attempt.key, "attempt": attempt.attempt}
        call: dict[str, Any] = {"call": item["call"]}
        error: TobanError
        try:
            try:
                completion = self._completion(line, model)
                call |= self._counted(completion.model, completion.usage)
                verdict = parse(completion.text)
            except BadVerdict as wrong:
                call["outcome"], error = wrong.outcome, wrong
            except CallFailed as failed:
                call["outcome"], error = failed.outcome, failed.error
                call |= self._counted(model, failed.usage) if failed.usage else {"cost": "0"}
            else:
                call["outcome"] = "ok"
                result = {"row": row_of(verdict, completion.model), "call": call}
                try:
                    self._services.ledger.settle("toban_finish", attempt, result=result, error=None)
                except TobanError as problem:
                    self._call("toban_end_call", **{**call, "outcome": "unused"})
                    if not isinstance(problem, Permanent):
                        raise
                    end_badly(self._services.ledger, attempt, problem, facts, datetime.now(UTC), DIRECT)
                return
            self._call("toban_end_call", **call)
            end_badly(self._services.ledger, attempt, error, facts, datetime.now(UTC), DIRECT)
        except TobanError as problem:
            log.warning("work.lost", **facts, reason=str(problem))

    def _completion(self, line: Mapping[str, Any], model: str) -> Completion:
        answer = line.get("response")
        if not isinstance(answer, dict):
            told = line.get("error") or {}
            code = told.get("code") if isinstance(told, dict) else None
            outcome = Transient(f"{self._chat.host} did not answer this row of a batch ({code or 'no reason given'})")
            raise CallFailed("server_error", outcome, billed=False)
        status, body = int(answer.get("status_code") or 0), answer.get("body")
        if status >= 400:
            raise refused(
                Refused.read(status, body),
                self._chat.host,
                model,
                headers={},
                secret="",
                private=(),
            )
        return completion_of(body, self._chat.host, model)

    def _counted(self, model: str, usage: Usage | None) -> dict[str, Any]:
        if usage is None:
            return {"model": model}
        spent = cost(model, usage.prompt, usage.cached, usage.completion, self._gpt.llm_prices, batch=True)
        return {
            "model": model,
            "prompt_tokens": usage.prompt,
            "cached_tokens": usage.cached,
            "completion_tokens": usage.completion,
            "cost": _text(spent),
        }


def _line(item: Mapping[str, Any], prompt: str, model: str) -> str:
    body = request_body([Message(role="user", content=prompt)], model, SCHEMA)
    name = f"{item['id']}-{item['attempt']}"
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body})


async def _listed(client: Any) -> "list[Batch]":  # noqa: ANN401 - AsyncOpenAI
    """The account's latest batches."""
    return list((await client.batches.list(limit=100)).data)


def _unanswered(line: Mapping[str, Any]) -> bool:
    """Whether a line says that its row's turn never came."""
    error = line.get("error")
    return isinstance(error, dict) and error.get("code") in {"batch_expired", "batch_cancelled"}


def _ending(theirs: "Batch") -> str:
    errors = (theirs.errors.data if theirs.errors else None) or []
    codes = ", ".join(sorted({error.code for error in errors if error.code}))
    return f"{theirs.status}: {codes}" if codes else theirs.status


def _go_on() -> None:
    """Nobody gives up a batch on the way."""


def _text(amount: object) -> str | None:
    return None if amount is None else str(amount)
