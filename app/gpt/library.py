"""What the client library, and the HTTP library below it, raise: apart, because both take a second to import."""

from collections.abc import Sequence

import httpx2
import openai

from app.errors import NotReady, Permanent, TobanError, Transient
from app.gpt.failures import CallFailed, Outcome, Refused, refused
from app.gpt.http import LARGEST, TooLarge, decoded

_Kinds = tuple[type[Exception], ...]
_UNREACHED: _Kinds = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
_SLOW: _Kinds = (TimeoutError, httpx2.TimeoutException, openai.APITimeoutError)
_UNSENT: _Kinds = (httpx2.UnsupportedProtocol, httpx2.InvalidURL, httpx2.LocalProtocolError)
_UNREADABLE: _Kinds = (httpx2.DecodingError, openai.APIResponseValidationError)
_BROKEN: _Kinds = (openai.APIConnectionError, httpx2.HTTPError, httpx2.StreamError, OSError)

# The first one that fits: exceptions, outcome, error, its words, whether it was billed (None: possibly).
_MEANINGS: tuple[tuple[_Kinds, Outcome, type[TobanError], str, bool | None], ...] = (
    ((TooLarge,), "server_error", Transient, f"{{host}} answered more than {LARGEST} bytes", None),
    (_UNREACHED, "unreachable", Transient, "{host} can't be reached: {kind}", False),
    (
        _SLOW,
        "timeout",
        Transient,
        "{host} did not answer within {seconds:.3g} s (ANALYSIS_TIMEOUT, or the job's)",
        None,
    ),
    (_UNSENT, "unreachable", NotReady, "{host} can't be asked: {kind}; correct OPENAI_BASE_URL", False),
    (_UNREADABLE, "server_error", Transient, "{host} answered what can't be read", None),
    (_BROKEN, "unreachable", Transient, "the connection to {host} broke: {kind}", None),
    ((UnicodeError,), "rejected", Permanent, "the prompt holds characters that can't be sent", False),
    ((openai.LengthFinishReasonError,), "truncated", Permanent, "the answer was cut at its length limit", True),
    ((openai.ContentFilterFinishReasonError,), "content_filter", Permanent, "a filter of {host} stopped it", True),
    ((openai.OpenAIError,), "rejected", NotReady, "the client can't ask {host}: {kind}", False),
)


def translated(
    error: Exception, host: str, model: str, *, seconds: float, secret: str, private: Sequence[str], level: int
) -> CallFailed:
    """The failure that an exception of a call is. `seconds`: the call's deadline; the others: see `refused`.

    Raises `error` itself if it is no library's, but a bug.
    """
    if isinstance(error, openai.APIStatusError):
        answer = Refused.read(error.status_code, decoded(error.response.content))
        headers = error.response.headers
        return refused(answer, host, model, headers=headers, secret=secret, private=private, level=level)
    # The library wraps what the HTTP library raises, and tells only that there was something.
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else None
    for kinds, outcome, kind, words, billed in _MEANINGS:
        if isinstance(cause or error, kinds):
            told = words.format(host=host, kind=type(cause or error).__name__, seconds=seconds)
            return CallFailed(outcome, kind(told), billed=billed)
    raise error


def too_slow(host: str, seconds: float) -> CallFailed:
    """The total deadline is over."""
    return translated(TimeoutError(), host, "", seconds=seconds, secret="", private=(), level=0)
