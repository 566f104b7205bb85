"""What servers, and the libraries that speak to them, say when something goes wrong."""

import json
from collections.abc import Mapping
from typing import Any

import httpx2
import openai
import pytest

from app.errors import BadAnswer, Halted, NotReady, Permanent, RateLimited, Transient
from app.gpt.answers import completion_of, request_body, usage_of
from app.gpt.failures import CallFailed, Refused, Usage, harmless, refused
from app.gpt.http import TooLarge
from app.gpt.library import translated
from app.gpt.verdict import SCHEMA

KEY = "sk-proj-0123456789abcdefXYZ"
PROMPT = "Taro told Hanako that the garden needs water."
HOST = "llm.example"


def failure(status: int, body: object, level: int = 0, headers: Mapping[str, str] | None = None) -> CallFailed:
    answer = Refused.read(status, body)
    return refused(answer, HOST, "the-model", headers=headers or {}, secret=KEY, private=[PROMPT], level=level)


def error(message: str = "", **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


@pytest.mark.parametrize(
    ("status", "body", "outcome", "kind", "billed"),
    [
        # OpenAI
        (429, error(code="insufficient_quota", type="insufficient_quota"), "credit", Halted, False),
        (429, error(code=None, type="insufficient_quota"), "credit", Halted, False),
        (400, error(code="billing_hard_limit_reached"), "credit", Halted, False),
        (429, error(code="billing_not_active"), "credit", Halted, False),
        (429, error(code="rate_limit_exceeded", type="tokens"), "rate_limited", RateLimited, False),
        (401, error(code="invalid_api_key"), "key_refused", Halted, False),
        (403, error(code="unsupported_country_region_territory"), "key_refused", Halted, False),
        (403, error(code="model_not_found"), "model_unknown", Halted, False),
        (404, error(code="model_not_found"), "model_unknown", Halted, False),
        (400, error(code="content_policy_violation"), "content_filter", Permanent, False),
        (400, error(code="context_length_exceeded", param="messages"), "rejected", Permanent, False),
        (400, error(code="unsupported_value", param="temperature"), "rejected", Permanent, False),
        (500, error(type="server_error"), "server_error", Transient, False),
        (503, error(), "server_error", Transient, False),
        # Others
        (402, error("Insufficient Balance", code="invalid_request_error"), "credit", Halted, False),  # DeepSeek
        (400, error(code="model_decommissioned"), "model_unknown", Halted, False),  # Groq
        (400, error("Failed to generate JSON", code="json_validate_failed"), "invalid_json", BadAnswer, None),  # Groq
        (413, error("Request too large"), "rejected", Permanent, False),
        (404, error("model 'x' not found, try pulling it first"), "model_unknown", Halted, False),  # Ollama
        (404, {"object": "error", "message": "No model `x`.", "code": 404}, "model_unknown", Halted, False),  # vLLM
        (404, {"detail": "Not Found"}, "model_unknown", Halted, False),
        (400, error(innererror={"code": "ResponsibleAIPolicyViolation"}), "content_filter", Permanent, False),  # Azure
        (422, {"detail": [{"loc": ["body", "messages"], "msg": "field required"}]}, "rejected", Permanent, False),
        # In between
        (502, None, "server_error", Transient, None),
        (504, "<html>Gateway Time-out</html>", "server_error", Transient, None),
        (408, None, "server_error", Transient, False),
        (409, None, "server_error", Transient, False),
        (301, None, "rejected", NotReady, False),
        (418, [1], "rejected", Permanent, False),
        (429, None, "rate_limited", RateLimited, False),
    ],
)  # fmt: skip
def test_answers_that_are_errors(status: int, body: object, outcome: str, kind: type, billed: object) -> None:
    failed = failure(status, body)
    assert (failed.outcome, type(failed.error), failed.billed) == (outcome, kind, billed)
    assert f"{HOST} answered {status}" in str(failed.error)


@pytest.mark.parametrize(
    ("body", "cause"), [(error(code="insufficient_quota"), "credit"), (error(code="model_not_found"), "model")]
)
def test_a_halt_says_why(body: object, cause: str) -> None:
    halted = failure(429, body).error
    assert isinstance(halted, Halted)
    assert (halted.cause, halted.seconds) == (cause, 600)
    assert failure(429, error(code="insufficient_quota"), headers={"retry-after": "60"}).limits.pause == 0


def test_a_rate_limit_says_when() -> None:
    limited = failure(429, error(), headers={"retry-after": "7"})
    assert isinstance(limited.error, RateLimited)
    assert (limited.error.retry_after, limited.limits.pause) == (7, 7)


def test_a_missing_batch_is_no_missing_model() -> None:
    answer = Refused.read(404, error("No such object"))
    assert refused(answer, HOST, "", headers={}, secret=KEY, private=[]).outcome == "rejected"


SCHEMA_REFUSALS = [
    # OpenAI's older models
    (400, error("Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.",
                param="response_format", type="invalid_request_error")),
    # Groq
    (400, error("This model does not support response format `json_schema`. See supported models at …")),
    # vLLM before it knew schemas
    (400, {"object": "error", "message": "[{'type': 'literal_error', 'loc': ('body', 'response_format', 'type'), "
                                         "'msg': \"Input should be 'text' or 'json_object'\"}]", "code": 400}),
    (422, {"detail": [{"loc": ["body", "response_format", "type"], "msg": "unexpected value"}]}),
    # DeepSeek
    (400, error("This response_format type is unavailable now", type="invalid_request_error")),
    # llama.cpp
    (500, error('response_format type must be one of "text" or "json_object", but got: json_schema', code=500)),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body"), SCHEMA_REFUSALS)
def test_a_server_without_schemas(status: int, body: object) -> None:
    failed = failure(status, body, level=2)
    assert (failed.outcome, failed.billed) == ("schema_unsupported", False)
    assert isinstance(failed.error, Transient)
    assert failure(status, body, level=0).outcome in {"rejected", "server_error"}, "nothing is left to go without"


def test_a_server_without_json_mode() -> None:
    words = "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'."
    body = error(words, param="messages")
    assert failure(400, body, level=1).outcome == "schema_unsupported"
    assert failure(400, body, level=2).outcome == "rejected", "it is the messages it complains of"


def test_other_errors_are_not_taken_for_that() -> None:
    for status, body in [(400, error("bad prompt", param="messages")), (401, error("response_format")), (429, error())]:
        assert failure(status, body, level=2).outcome != "schema_unsupported"


@pytest.mark.parametrize(
    "body",
    [
        error(f"Incorrect API key provided: {KEY}."),
        error("Incorrect API key provided: sk-pro***fXYZ."),
        error(f"Bad value: {PROMPT}"),
        error("Bad value: Hanako"),
        error("bad: 部屋で話した"),
        error(PROMPT, code=KEY, param=KEY[:20], type=KEY[7:]),
        error(code=PROMPT, param=PROMPT, type=PROMPT),
        {"detail": [{"input": PROMPT}]},
        PROMPT,
        f"<p>{PROMPT}</p>",
        {"error": PROMPT},
    ],
)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500])
def test_nothing_private_is_repeated(status: int, body: object) -> None:
    for level in (0, 2):
        failed = failure(status, body, level=level)
        for shown in (str(failed), repr(failed), repr(failed.error), repr(Refused.read(status, body))):
            assert not any(word in shown for word in ("Taro", "Hanako", "garden", "部屋", KEY[:8], KEY[10:16], "fXYZ"))


def test_a_servers_plain_words_are_repeated() -> None:
    words = "Unrecognized request argument supplied: foo"
    assert words in str(failure(400, error(words)).error)
    assert harmless("must be less than 4", KEY, [PROMPT]) == "must be less than 4"
    assert harmless("x" * 400, KEY, []) == ""


def test_the_body_of_a_call() -> None:
    messages = [{"role": "user", "content": "hello"}]
    full = request_body(messages, "m", SCHEMA)  # type: ignore[arg-type]
    assert full["messages"] == messages
    assert full["response_format"]["json_schema"] == {"name": "verdict", "strict": True, "schema": SCHEMA}
    as_object = request_body(messages, "m", SCHEMA, 1)  # type: ignore[arg-type]
    assert as_object["response_format"] == {"type": "json_object"}
    assert "JSON" in as_object["messages"][0]["content"]
    assert json.dumps(SCHEMA) in as_object["messages"][0]["content"]
    plain = request_body(messages, "m", SCHEMA, 0)  # type: ignore[arg-type]
    assert plain["messages"] == as_object["messages"]
    assert "response_format" not in plain


def choice(content: object = "text", finish: str = "stop", **message: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
    return {
        "model": "m-1",
        "choices": [{"message": {"content": content, **message}, "finish_reason": finish}],
        "usage": usage,
    }


def test_an_answer() -> None:
    found = completion_of(choice(), HOST, "m")
    assert (found.text, found.model, found.usage) == ("text", "m-1", Usage(10, 4, 5))
    assert completion_of(choice([{"type": "text", "text": "a"}, {"text": "b"}]), HOST, "m").text == "ab"
    assert completion_of(choice(None), HOST, "m").text == ""
    assert completion_of({**choice(), "model": "x y\n"}, HOST, "m").model == "m"
    assert PROMPT not in repr(completion_of(choice(PROMPT), HOST, "m"))


@pytest.mark.parametrize(
    ("body", "outcome", "billed"),
    [
        (choice(None, refusal="no"), "refusal", True),
        (choice("", finish="content_filter"), "content_filter", True),
        (choice("{", finish="length"), "truncated", True),
        (None, "server_error", None),
        ([], "server_error", None),
        ({}, "server_error", None),
        ({"choices": []}, "server_error", None),
        ({"choices": [None]}, "server_error", None),
        ({"choices": [{"message": "x"}]}, "server_error", None),
        ({"error": {"code": 502, "message": "upstream"}}, "server_error", None),
        ({"error": {"code": 429}}, "rate_limited", False),
        ({"error": "x"}, "server_error", None),
    ],
)
def test_an_answer_that_is_none(body: object, outcome: str, billed: object) -> None:
    with pytest.raises(CallFailed) as told:
        completion_of(body, HOST, "m")
    assert (told.value.outcome, told.value.billed) == (outcome, billed)
    assert (told.value.usage == Usage(10, 4, 5)) is bool(billed)


def test_a_usage_that_is_none() -> None:
    assert usage_of(None) is None
    assert usage_of({}) == Usage()
    assert usage_of({"prompt_tokens": -1, "completion_tokens": True, "prompt_tokens_details": None}) == Usage()


# Every exception of the two libraries: what it means, or "status" where the status decides.
OPENAI = {
    "OpenAIError": "rejected",
    "APIError": "rejected",
    "APIConnectionError": "unreachable",
    "APITimeoutError": "timeout",
    "APIResponseValidationError": "server_error",
    "LengthFinishReasonError": "truncated",
    "ContentFilterFinishReasonError": "content_filter",
    "SubjectTokenProviderError": "rejected",
    "WebSocketConnectionClosedError": "rejected",
    "WebSocketQueueFullError": "rejected",
    "APIStatusError": "status",
    "BadRequestError": "status",
    "AuthenticationError": "status",
    "OAuthError": "status",
    "PermissionDeniedError": "status",
    "NotFoundError": "status",
    "ConflictError": "status",
    "UnprocessableEntityError": "status",
    "RateLimitError": "status",
    "InternalServerError": "status",
}
HTTP = {
    "HTTPError": "unreachable",
    "RequestError": "unreachable",
    "TransportError": "unreachable",
    "TimeoutException": "timeout",
    "ConnectTimeout": "unreachable",
    "ReadTimeout": "timeout",
    "WriteTimeout": "timeout",
    "PoolTimeout": "unreachable",
    "NetworkError": "unreachable",
    "ConnectError": "unreachable",
    "ReadError": "unreachable",
    "WriteError": "unreachable",
    "CloseError": "unreachable",
    "ProxyError": "unreachable",
    "UnsupportedProtocol": "unreachable",
    "ProtocolError": "unreachable",
    "LocalProtocolError": "unreachable",
    "RemoteProtocolError": "unreachable",
    "DecodingError": "server_error",
    "TooManyRedirects": "unreachable",
    "HTTPStatusError": "unreachable",
    "InvalidURL": "unreachable",
    "StreamError": "unreachable",
    "StreamConsumed": "unreachable",
    "StreamClosed": "unreachable",
    "ResponseNotRead": "unreachable",
    "RequestNotRead": "unreachable",
}
UNBILLED = {"ConnectTimeout", "PoolTimeout", "ConnectError", "ProxyError", "UnsupportedProtocol", "LocalProtocolError"}
NOT_OURS = {
    "CookieConflict",  # cookies are not read
    "InvalidWebhookSignatureError",  # nor webhooks
    "HTTPXDeprecationWarning",
}


def exceptions(module: Any) -> set[str]:
    # Not isinstance(): it asks lazy members for their class, and they load 100 MB of modules to tell it.
    members = {name: value for name, value in vars(module).items() if type(value) is type}
    return {name for name, value in members.items() if issubclass(value, Exception)} - NOT_OURS


def meaning(raised: Exception, host: str = HOST) -> CallFailed:
    return translated(raised, host, "m", seconds=60, secret=KEY, private=[PROMPT], level=0)


def made(kind: type[Exception]) -> Exception:
    """An instance without its constructor, which each has another of."""
    return kind.__new__(kind)


def test_every_exception_of_the_client_has_a_meaning() -> None:
    assert exceptions(openai._exceptions) == OPENAI.keys()
    assert exceptions(openai) & set(openai.__all__) <= OPENAI.keys()
    for name, outcome in OPENAI.items():
        if outcome != "status":
            assert meaning(made(getattr(openai._exceptions, name))).outcome == outcome, name


@pytest.mark.parametrize("name", [name for name, outcome in OPENAI.items() if outcome == "status"])
def test_a_status_decides(name: str) -> None:
    response = httpx2.Response(401, json=error("no"), request=httpx2.Request("POST", "https://x"))
    kind = getattr(openai._exceptions, name)
    raised = kind(response=response, body=None) if name == "OAuthError" else kind("no", response=response, body=None)
    assert meaning(raised).outcome == "key_refused"


def test_every_exception_of_the_http_library_has_a_meaning() -> None:
    assert exceptions(httpx2._exceptions) == HTTP.keys()
    for name, outcome in HTTP.items():
        raised = made(getattr(httpx2, name))
        wrapped = openai.APIConnectionError(request=httpx2.Request("POST", "https://x"))
        wrapped.__cause__ = raised
        for one in (raised, wrapped):
            failed = meaning(one)
            assert failed.outcome == outcome, name
            assert failed.billed is (False if name in UNBILLED | {"InvalidURL"} else None), name


def test_what_else_is_raised() -> None:
    assert meaning(TimeoutError()).outcome == "timeout"
    assert meaning(ConnectionResetError()).billed is None
    assert meaning(TooLarge()).outcome == "server_error"
    assert meaning(UnicodeEncodeError("utf-8", PROMPT, 0, 1, "surrogates")).outcome == "rejected"
    with pytest.raises(ZeroDivisionError):  # a bug is told as one
        meaning(ZeroDivisionError())
