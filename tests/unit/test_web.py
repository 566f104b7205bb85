"""Pure parts of the web pages: words, paths, numbers."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from babel.messages.pofile import read_po
from hypothesis import given
from hypothesis import strategies as st

from app.web import catalogues, i18n
from app.web.reader import LANGUAGES, Language, Reader, _reader
from app.web.render import own_path
from tests.support.servers import ROOT

PLACES = re.compile(r"\{\w*\}")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_catalogues_are_up_to_date(language: str) -> None:
    """After a change of words: python -m app.web.catalogues, and translate what is new."""
    path = catalogues.LOCALES / f"{language}.po"
    assert path.read_text(encoding="utf-8") == catalogues.updated(language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_message_is_translated(language: str) -> None:
    with (catalogues.LOCALES / f"{language}.po").open("rb") as file:
        catalog = read_po(file, locale=language)
    messages = [message for message in catalog if message.id]
    assert len(messages) > 50
    for message in messages:
        ids = message.id if isinstance(message.id, tuple) else (message.id,)
        strings = message.string if isinstance(message.string, tuple) else (message.string,)
        assert all(strings), message.id
        assert not message.fuzzy
        for string in strings:
            assert set(PLACES.findall(str(string))) == set(PLACES.findall(str(ids[-1]))), message.id
    # What is shown is what was compiled from it.
    shown = i18n.catalogue(language)
    assert all(
        shown.gettext(str(message.id)) == message.string for message in messages if not isinstance(message.id, tuple)
    )


def test_every_word_of_a_template_goes_through_the_catalogue() -> None:
    code = re.compile(r'\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}|<pre>.*?</pre>|<[^>]+>|class="[^"]*"', re.DOTALL)
    for path in (ROOT / "app/web/templates").glob("*.html"):
        text = code.sub(" ", path.read_text(encoding="utf-8"))
        assert set(re.findall(r"[^\W\d_]{3,}", text)) <= {"Toban"}, path.name


def as_reader(language: Language) -> None:
    _reader.set(Reader(language=language))


@pytest.mark.parametrize(
    ("seconds", "english", "japanese"),
    [
        (0.4, "0.4 s", "0.4 秒"),
        (45, "45 sec", "45 秒"),
        (90, "2 min", "2 分"),
        (3 * 3600, "3 hr", "3 時間"),
        (None, "", ""),
    ],
)
def test_durations(seconds: float | None, english: str, japanese: str) -> None:
    as_reader("en")
    assert i18n.duration(seconds) == english
    as_reader("ja")
    assert i18n.duration(seconds) == japanese


def test_moments() -> None:
    as_reader("en")
    assert i18n.ago(None) == ""
    past = datetime.now(UTC) - timedelta(minutes=3)
    shown = i18n.ago(past)
    assert ">3 minutes ago</time>" in shown
    assert f"{past:%Y-%m-%d %H:%M:%S} UTC" in shown
    assert ">in 3 hours</time>" in i18n.ago((past + timedelta(hours=3, minutes=4)).isoformat())
    assert f">{past:%H:%M}</time>" in i18n.at(past, "HH:mm")
    as_reader("ja")
    assert ">3 分前</time>" in i18n.ago(past)


def test_sizes_and_numbers() -> None:
    as_reader("en")
    assert [i18n.size(n) for n in (0, 999, 1500, 123_456, 5_000_000_000, 5e15)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "123 kB",
        "5 GB",
        "5,000,000 GB",
    ]
    assert i18n.number(1234.5) == "1,234.5"


@given(st.one_of(st.text(), st.text("/\\.:?#@ \t\r\nab%")))
def test_a_path_is_ours_whatever_is_asked_for(wanted: str) -> None:
    found = own_path(wanted)
    assert found.startswith("/")
    assert not found.startswith("//")
    assert found.isascii()
    assert found.isprintable()
    assert "\\" not in found


@pytest.mark.parametrize("path", ["/", "/incidents", "/items/a/d1%2F2025?x=1&y=%E5%BD%93", "/days/d1/2025-07-18"])
def test_a_path_of_ours_stays_as_it_is(path: str) -> None:
    assert own_path(path) == path
