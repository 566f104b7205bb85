"""`render(request, "page.html", …)`: a page from a template, in the reader's language, with what every page needs."""

from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from app.web import i18n
from app.web.auth import form_token, identified
from app.web.headers import policy
from app.web.reader import LANGUAGES, reader

STATIC = Path(__file__).parent / "static"


def url(path: str, **query: object) -> str:
    """The address of a page of ours: `path` as the routes have it, behind the proxy's own path."""
    text = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in query.items() if value is not None)
    return f"{reader().root}{path}" + (f"?{text}" if text else "")


@cache
def _version(name: str) -> str:
    return sha256((STATIC / name).read_bytes()).hexdigest()[:12]


def static(name: str) -> str:
    """The address of a file under `static/`, another one when the file changes."""
    return url(f"/static/{name}", v=_version(name))


def csrf() -> Markup:
    """The hidden field that every form of ours carries."""
    return Markup('<input type="hidden" name="csrf" value="{}">').format(reader().csrf)


def here(path: str) -> bool:
    """Whether this page is `path`, or below it."""
    own = reader().path.partition("?")[0]
    return own == path or own.startswith(f"{path}/")


@cache
def environment() -> Environment:
    own = Environment(
        loader=PackageLoader("app.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own.globals |= {
        "t": i18n.t,
        "nt": i18n.nt,
        "url": url,
        "static": static,
        "csrf": csrf,
        "here": here,
        "reader": reader,
        "languages": LANGUAGES,
    }
    own.filters |= {
        "ago": i18n.ago,
        "at": i18n.at,
        "absolute": i18n.absolute,
        "duration": i18n.duration,
        "size": i18n.size,
        "number": i18n.number,
    }
    return own


def render(
    request: Request,
    template: str,
    *,
    status: int = 200,
    media: Iterable[str] = (),
    known: bool = True,
    **context: Any,  # noqa: ANN401 - what the template needs
) -> Response:
    """A page. `media`: origins that its audio may come from; `known`: False where the database can't be asked.

    Beside `context` the template has `user` (None: nobody is signed in).
    """
    response = HTMLResponse(status_code=status)
    if known:
        reader().user = identified(request)
        reader().csrf = form_token(request, response)
    text = environment().get_template(template).render(user=reader().user if known else None, **context)
    response.body = text.encode()
    response.headers["Content-Length"] = str(len(response.body))
    response.headers["Content-Language"] = reader().language
    response.headers["Vary"] = "Accept-Language, Cookie"
    response.headers["Content-Security-Policy"] = policy(media)
    return response


def redirect(path: str, **query: object) -> RedirectResponse:
    """To another page of ours, after a form was taken."""
    return RedirectResponse(url(path, **query), 303)


def own_path(wanted: str | None, default: str = "/") -> str:
    """`wanted`, if it is a path of ours and nothing else; never another site's address."""
    if not wanted or not wanted.startswith("/") or not wanted.isprintable() or "\\" in wanted:
        return default
    try:
        parts = urlsplit(wanted)
    except ValueError:
        return default
    if parts.scheme or parts.netloc or wanted.startswith("//"):
        return default
    return quote(wanted, safe="/?&=%:+,;@!$'()*~.-_[]")
