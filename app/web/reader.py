"""Who reads the page of this request: language, time zone, theme; and where the pages are.

It is known in every thread that works for the request, so filters and `t()` need no argument for it.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from babel.core import negotiate_locale
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from app.settings import Settings

if TYPE_CHECKING:
    from app.web.auth import User

Language = Literal["en", "ja"]
LANGUAGES: dict[Language, str] = {"en": "English", "ja": "日本語"}
THEMES = ("auto", "light", "dark")
LANGUAGE_COOKIE, THEME_COOKIE, ZONE_COOKIE = "toban_language", "toban_theme", "toban_zone"


@dataclass
class Reader:
    """`root`: the path before every page's own; `path`: this page's own path, with its query."""

    language: Language = "en"
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))
    zone_chosen: bool = False
    theme: str = "auto"
    root: str = ""
    path: str = "/"
    user: "User | None" = None
    csrf: str = ""


_reader: ContextVar[Reader] = ContextVar("toban_reader", default=Reader())  # noqa: B039 - never changed, only replaced


def reader() -> Reader:
    """The reader of the request that is being answered; outside of one, an English reader in UTC."""
    return _reader.get()


def zone_named(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def accepted(header: str, default: Language) -> Language:
    """The language that an `Accept-Language` header likes best; RFC 9110, section 12.5.4."""
    wishes: list[tuple[float, str]] = []
    for part in header.split(",")[:20]:
        name, _, weight = part.strip().partition(";")
        try:
            quality = float(weight.strip().removeprefix("q=")) if weight else 1.0
        except ValueError:
            quality = 0.0
        if name and quality > 0:
            wishes.append((-quality, name.strip().replace("-", "_")))
    names = [name for _, name in sorted(wishes, key=lambda wish: wish[0])]
    found = negotiate_locale([part for name in names for part in (name, name.split("_")[0])], list(LANGUAGES))
    return next((language for language in LANGUAGES if language == found), default)


class ReaderMiddleware:
    """Makes the request's `Reader` from its cookies and headers."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.default: Language = settings.web.web_language
        self.zone = settings.audio.zone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            _reader.set(self._of(HTTPConnection(scope)))
        await self.app(scope, receive, send)

    def _of(self, request: HTTPConnection) -> Reader:
        chosen = request.cookies.get(LANGUAGE_COOKIE)
        language = next((language for language in LANGUAGES if language == chosen), None)
        zone = zone_named(request.cookies.get(ZONE_COOKIE, "").replace("%2F", "/"))
        theme = request.cookies.get(THEME_COOKIE, "")
        root = request.scope.get("root_path", "")
        path = str(request.scope["path"])
        query = request.scope.get("query_string", b"").decode("latin-1")
        return Reader(
            language=language or accepted(request.headers.get("accept-language", ""), self.default),
            zone=zone or self.zone,
            zone_chosen=zone is not None,
            theme=theme if theme in THEMES else "auto",
            root=root,
            path=path.removeprefix(root) + (f"?{query}" if query else ""),
        )
