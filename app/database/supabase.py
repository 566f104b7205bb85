"""The ledger over Supabase's REST API (supabase-py's `.rpc()`)."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

import httpx

from app import tracing
from app.database.core import FORBIDDEN, MISSING, from_sqlstate, refuse_nul
from app.errors import Permanent, Transient

if TYPE_CHECKING:
    from supabase import Client

# Longer than any function's own statement_timeout that the program calls often, so that the server speaks first.
TIMEOUT = httpx.Timeout(40, connect=10)


class SupabaseDatabase:
    """`url`: the project's address; `key`: its service_role key."""

    def __init__(self, url: str, key: str, rest_url: str | None = None) -> None:
        self._url = url
        self._key = key
        self._rest_url = rest_url
        # The client's own HTTP/2 session is not safe to share among threads.
        self._http = httpx.Client(http2=False, timeout=TIMEOUT, event_hooks={"request": [_trace]})

    @cached_property
    def _client(self) -> "Client":
        from supabase import Client, ClientOptions

        client = Client(self._url, self._key, ClientOptions(httpx_client=self._http))
        if self._rest_url:
            client.rest_url = type(client.rest_url)(self._rest_url)  # text or a URL, as the version has it  # type: ignore[assignment]
        return client

    def call(self, function: str, **params: object) -> Any:  # noqa: ANN401 - see Database
        refuse_nul(params, function)
        from postgrest import APIError

        try:
            with tracing.outside(function, tracing.DATABASE):
                return self._client.rpc(function, {"p": params}).execute().data
        except APIError as error:
            raise self._translate(error.code, error.message or str(error), function) from error
        except httpx.HTTPError as error:
            raise Transient(f"{function}: {str(error) or type(error).__name__}") from error

    @staticmethod
    def _translate(code: str | None, message: str, function: str) -> Transient | Permanent:
        code = str(code or "")
        if code in {"401", "403", "PGRST301", "PGRST302", "PGRST303"}:
            return Permanent(FORBIDDEN)
        if code in {"404", "PGRST202"}:
            return Permanent(MISSING.format(function=function))
        # PGRST000-003: the REST server has no database connection. Plain numbers are gateways' answers.
        if code.startswith("PGRST00") or code in {"408", "429", "500", "502", "503", "504", "520", "522", "524"}:
            return Transient(f"{function}: {message}")
        return from_sqlstate(code, message, function)

    def close(self) -> None:
        self._http.close()


def _trace(request: httpx.Request) -> None:
    """PostgREST shows a request's headers to the functions that it calls."""
    if context := tracing.traceparent():
        request.headers["toban-trace"] = context
