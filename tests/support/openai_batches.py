"""Files and batches of the server in `openai_server.py`: what OpenAI's Batch API does with a JSONL file.

Source: OpenAI's API reference, "Files" and "Batch".
"""

import itertools
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from random import Random
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from tests.support.openai_server import OpenAIServer

HALF = Decimal("0.5")
_STEPS = ("validating", "in_progress", "finalizing", "completed")
_ENDED = ("completed", "expired", "cancelled", "failed")
_NO_SUCH = {"error": {"message": "No such object", "type": "invalid_request_error", "param": "id", "code": None}}
Answer = tuple[int, dict[str, Any] | bytes]


@dataclass
class Batches:
    """`step`: seconds that each state lasts; None: until the batch is looked at again.

    `expire_after`: lines that get done before a batch expires; None: it doesn't. `fail`: code with which the next
    batches fail to validate, such as `token_limit_exceeded`.
    """

    step: float | None = None
    expire_after: int | None = None
    fail: str | None = None
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    all: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._moved: dict[str, float] = {}

    def answer(
        self, fake: "OpenAIServer", method: str, address: str, headers: Mapping[str, str], content: bytes
    ) -> Answer:
        """Status and body of a request under /v1/files or /v1/batches."""
        parts = urlsplit(address)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        with fake.lock:
            answer: Answer = 404, _NO_SUCH
            match [method, *parts.path.strip("/").split("/")[1:]]:
                case ["POST", "files"]:
                    answer = 200, self._upload(headers, content)
                case ["GET", "files"]:
                    answer = 200, _page(self.files, query)
                case ["GET", "files", name] if name in self.files:
                    answer = 200, self.files[name]
                case ["GET", "files", name, "content"] if name in self.contents:
                    answer = 200, self.contents[name]
                case ["DELETE", "files", name] if name in self.files:
                    del self.files[name], self.contents[name]
                    answer = 200, {"id": name, "object": "file", "deleted": True}
                case ["POST", "batches"]:
                    answer = self._create(json.loads(content))
                case ["GET", "batches"]:
                    answer = 200, _page(self.all, query)
                case ["GET", "batches", name] if name in self.all:
                    self._move(fake, self.all[name])
                    answer = 200, self.all[name]
                case ["POST", "batches", name, "cancel"] if name in self.all:
                    answer = self._cancel(self.all[name])
            return answer

    def _upload(self, headers: Mapping[str, str], content: bytes) -> dict[str, Any]:
        boundary = headers["Content-Type"].partition("boundary=")[2].strip('"').encode()
        parts = {}
        for part in content.split(b"--" + boundary)[1:-1]:
            head, _, body = part.partition(b"\r\n\r\n")
            if named := re.search(rb'name="([^"]+)"(?:; filename="([^"]*)")?', head):
                parts[named[1].decode()] = (body.removesuffix(b"\r\n"), (named[2] or b"").decode())
        data, filename = parts["file"]
        return self._file(data, filename, parts["purpose"][0].decode())

    def _file(self, data: bytes, filename: str, purpose: str) -> dict[str, Any]:
        name = f"file-{next(self._numbers)}"
        self.contents[name] = data
        self.files[name] = {
            "id": name,
            "object": "file",
            "bytes": len(data),
            "created_at": int(time.time()),
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
        }
        return self.files[name]

    def _create(self, asked: Mapping[str, Any]) -> Answer:
        if asked.get("input_file_id") not in self.files:
            return 404, _NO_SUCH
        name, now = f"batch_{next(self._numbers)}", int(time.time())
        self.all[name] = {
            "id": name,
            "object": "batch",
            "endpoint": asked["endpoint"],
            "errors": None,
            "input_file_id": asked["input_file_id"],
            "completion_window": asked["completion_window"],
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "in_progress_at": None,
            "expires_at": now + 24 * 3600,
            "finalizing_at": None,
            "completed_at": None,
            "failed_at": None,
            "expired_at": None,
            "cancelling_at": None,
            "cancelled_at": None,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": asked.get("metadata"),
        }
        self._moved[name] = time.monotonic()
        return 200, dict(self.all[name])

    def _cancel(self, batch: dict[str, Any]) -> Answer:
        if batch["status"] in _ENDED:
            words = f"Cannot cancel a batch with status '{batch['status']}'."
            return 409, {"error": {"message": words, "type": "invalid_request_error", "param": None, "code": None}}
        _enter(batch, "cancelling")
        return 200, batch

    def _move(self, fake: "OpenAIServer", batch: dict[str, Any]) -> None:
        """As far as the time, or the look, brings it."""
        now, steps = time.monotonic(), 1
        if self.step is not None:
            steps = int((now - self._moved[batch["id"]]) / self.step)
            self._moved[batch["id"]] += steps * self.step
        for _ in range(steps):
            if batch["status"] in _ENDED:
                return
            self._advance(fake, batch)

    def _advance(self, fake: "OpenAIServer", batch: dict[str, Any]) -> None:
        if batch["status"] == "cancelling":
            half = batch["request_counts"]["total"] // 2
            self._finish(fake, batch, half, ("batch_cancelled", "This request was not executed."), "cancelled")
        elif batch["status"] == "validating":
            errors = self._errors(fake, batch)
            if errors:
                batch["errors"] = {"object": "list", "data": errors}
            else:
                batch["request_counts"]["total"] = len(self._lines(batch))
            _enter(batch, "failed" if errors else "in_progress")
        elif batch["status"] == "in_progress" and self.expire_after is not None:
            words = "This request could not be executed before the completion window expired."
            self._finish(fake, batch, self.expire_after, ("batch_expired", words), "expired")
        elif batch["status"] == "finalizing":
            self._finish(fake, batch, batch["request_counts"]["total"], ("", ""), "completed")
        else:
            _enter(batch, _STEPS[_STEPS.index(batch["status"]) + 1])

    def _lines(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.contents[batch["input_file_id"]].splitlines() if line.strip()]

    def _errors(self, fake: "OpenAIServer", batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What is wrong with the file as a whole."""

        def error(code: str, line: int | None) -> dict[str, Any]:
            return {"object": "error", "code": code, "message": code.replace("_", " "), "param": None, "line": line}

        if self.fail:
            return [error(self.fail, None)]
        try:
            lines = self._lines(batch)
        except ValueError:
            return [error("invalid_json_line", 1)]
        if not lines:
            return [error("empty_file", None)]
        seen, errors, model = set(), [], lines[0]["body"].get("model")
        for number, line in enumerate(lines, 1):
            if line["custom_id"] in seen:
                errors.append(error("duplicate_custom_id", number))
            if line.get("method") != "POST" or line.get("url") != batch["endpoint"]:
                errors.append(error("invalid_url", number))
            if line["body"].get("model") != model:
                errors.append(error("mismatched_model", number))
            if line["body"].get("model") not in fake.models:
                errors.append(error("model_not_found", number))
            seen.add(line["custom_id"])
        return errors

    def _finish(
        self, fake: "OpenAIServer", batch: dict[str, Any], done: int, undone: tuple[str, str], status: str
    ) -> None:
        """Answers the first `done` lines, says `undone` (code, message) of the others, and ends the batch."""
        good: list[dict[str, Any]] = []
        bad: list[dict[str, Any]] = []
        for number, line in enumerate(self._lines(batch)):
            answer: dict[str, Any] = {"id": f"batch_req_{number}", "custom_id": line["custom_id"]}
            if number >= done:
                bad.append(answer | {"response": None, "error": {"code": undone[0], "message": undone[1]}})
                continue
            status_code, body = self._line(fake, line)
            response = {"status_code": status_code, "request_id": f"req_{number}", "body": body}
            (good if status_code == 200 else bad).append(answer | {"response": response, "error": None})
        Random(fake.seed).shuffle(good)  # "the output line order may not match the input line order"
        for name, lines in (("output", good), ("error", bad)):
            if lines:
                data = "".join(json.dumps(line) + "\n" for line in lines).encode()
                batch[f"{name}_file_id"] = self._file(data, f"{batch['id']}_{name}.jsonl", "batch_output")["id"]
        batch["request_counts"] |= {"completed": len(good), "failed": len(bad)}
        _enter(batch, status)

    def _line(self, fake: "OpenAIServer", line: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        from tests.support.openai_server import WIRE, prompt_of

        prompt = prompt_of(line["body"])
        fake.counts[line["custom_id"]] += 1
        fault = fake.draw(prompt, fake.counts[line["custom_id"]])
        reply = fake.made(line["body"], "500" if fault in WIRE else fault, prompt)
        fake.bill(line["custom_id"], reply.tokens, HALF)
        return reply.status, reply.body


def _enter(batch: dict[str, Any], status: str) -> None:
    batch["status"] = status
    if f"{status}_at" in batch:
        batch[f"{status}_at"] = int(time.time())


def _page(objects: Mapping[str, dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """The newest first, `limit` of them after `after`."""
    names = list(objects)[::-1]
    if query.get("after") in names:
        names = names[names.index(query["after"]) + 1 :]
    count = int(query.get("limit", "20"))
    data = [objects[name] for name in names[:count]]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(names) > count,
    }
