"""Whoever stands before the web process: whose address a request has, and under which path it was asked for."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

_PEER = "toban_peer"


class Proxies:
    """Believes the `X-Forwarded-For` and `-Proto` of `trusted` proxies, and takes the path whether it is cut or not.

    `own`: the first parts of our own paths. With ROOT_PATH=/toban a proxy may ask for `/work` or for `/toban/work`. A
    ROOT_PATH that begins like a page of ours has to be cut off: `/work/work` could be meant either way.
    """

    def __init__(self, app: ASGIApp, *, trusted: Iterable[str], own: Iterable[str]) -> None:
        # (Any address is read as "nobody": an empty list would trust the default.)
        self.app = ProxyHeadersMiddleware(app, list(trusted))  # type: ignore[arg-type]  # uvicorn has types of its own
        self.own = frozenset(own)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if client := scope.get("client"):
                # A socket for both families tells IPv4 addresses in IPv6 form, which no network would match.
                scope["client"] = (str(plain(client[0]) or client[0]), client[1])
            scope[_PEER] = scope.get("client")
            self._cut(scope)
        await self.app(scope, receive, send)  # type: ignore[arg-type]

    def _cut(self, scope: Scope) -> None:
        """The server has put the root path before whatever was asked for; where it is there twice, once is enough."""
        root = scope.get("root_path", "")
        asked = scope["path"].removeprefix(root)
        if root and f"{asked}/".startswith(f"{root}/") and root.split("/")[1] not in self.own:
            scope["path"] = asked if asked != root else f"{asked}/"


def forwarded(request: HTTPConnection) -> bool:
    """Whether the request's address is what a trusted proxy said, and not that of who connected."""
    return request.scope.get("client") is not request.scope.get(_PEER)


def plain(text: str) -> IPv4Address | IPv6Address | None:
    """An address as networks are written: `::ffff:10.0.0.1` is 10.0.0.1; None: it is none."""
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found
