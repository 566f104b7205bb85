"""Words in the reader's language: `t("…")`, `nt("one", "many", n)`, and times and numbers as people write them there.

The catalogues are `locales/<language>.po`; they are compiled when they are first needed (milliseconds), so there is no
compiled file that could be out of date. `python -m app.web.catalogues` brings them up to the program.
"""

from datetime import UTC, datetime, timedelta
from functools import cache
from gettext import GNUTranslations, NullTranslations
from importlib import resources
from io import BytesIO

from babel.dates import format_datetime, format_timedelta
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.numbers import format_decimal
from markupsafe import Markup

from app.web.reader import reader


@cache
def catalogue(language: str) -> NullTranslations:
    file = resources.files("app.web") / "locales" / f"{language}.po"
    compiled = BytesIO()
    write_mo(compiled, read_po(BytesIO(file.read_bytes()), locale=language))
    compiled.seek(0)
    return GNUTranslations(compiled)


def t(message: str, **values: object) -> str:
    """`message` in the reader's language, its `{names}` replaced by `values`."""
    words = catalogue(reader().language).gettext(message)
    return words.format(**values) if values else words


def nt(one: str, many: str, n: int, **values: object) -> str:
    """The form for `n` things, with `{n}` replaced too."""
    return catalogue(reader().language).ngettext(one, many, n).format(n=n, **values)


def mark(message: str) -> str:
    """`message`, which is translated where it is shown; here it is only found by the catalogues' extraction."""
    return message


def moment(value: datetime | str) -> datetime:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def absolute(value: datetime | str) -> str:
    """`2026-11-25 14:35:19 JST`, in the reader's zone."""
    return str(format_datetime(moment(value), "yyyy-MM-dd HH:mm:ss z", tzinfo=reader().zone, locale=reader().language))


def relative(value: datetime | str) -> str:
    """`3 minutes ago`, `in 40 seconds`."""
    delta = moment(value) - datetime.now(UTC)
    return str(format_timedelta(delta, add_direction=True, threshold=1.5, locale=reader().language))


def ago(value: datetime | str | None) -> Markup:
    """A time element: how long ago, and the moment itself on hover. Nothing for None."""
    if value is None:
        return Markup()
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        moment(value).isoformat(), absolute(value), relative(value)
    )


def at(value: datetime | str | None, pattern: str = "yyyy-MM-dd HH:mm") -> Markup:
    """A time element: the moment in the reader's zone, and how long ago on hover. `pattern`: Unicode TR 35."""
    if value is None:
        return Markup()
    shown = format_datetime(moment(value), pattern, tzinfo=reader().zone, locale=reader().language)
    title = f"{absolute(value)} ({relative(value)})"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(moment(value).isoformat(), title, shown)


def duration(seconds: float | None) -> str:
    """`0.4 s`, `45 s`, `12 min`, `3 h`, `5 d`, in the reader's words. Nothing for None."""
    if seconds is None:
        return ""
    if abs(seconds) < 10 and seconds != round(seconds):
        number = format_decimal(round(seconds, 1), locale=reader().language)
        return t("{number} s", number=number)
    return str(format_timedelta(timedelta(seconds=seconds), threshold=1.5, format="short", locale=reader().language))


def size(count: float | None) -> str:
    """`12.3 MB`; `count`: bytes. Nothing for None."""
    if count is None:
        return ""
    units = ["GB", "MB", "kB", "B"]
    while abs(count) >= 1000 and len(units) > 1:
        count /= 1000
        units.pop()
    return f"{number(round(count, 1) if count < 100 else round(count))} {units[-1]}"


def number(value: float | None) -> str:
    """With the reader's separators. Nothing for None."""
    return "" if value is None else str(format_decimal(value, locale=reader().language))
