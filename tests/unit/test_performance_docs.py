"""docs/performance.md and docs/scale.md say what was measured."""

import re
from xml.etree import ElementTree as ET

import pytest

from bench.report import IMAGES, PAGES, TABLES, drawings, filled, read


def test_the_tables_are_the_results() -> None:
    """`python -m bench.report` writes them."""
    text = ""
    for page in PAGES:
        text += page.read_text("utf-8")
        assert filled(page.read_text("utf-8"), read()) == page.read_text("utf-8")
    shown = [name.split()[0] for name in re.findall(r"<!-- (?!end)(.+?) -->", text)]
    assert set(shown) == set(TABLES)
    assert text.count("<!-- end -->") == len(shown)


def test_the_pictures_are_the_results() -> None:
    page = PAGES[0].read_text("utf-8")
    for name, drawing in drawings(read()).items():
        assert (IMAGES / name).read_text("utf-8") == drawing
        assert f"(img/{name})" in page
        ET.fromstring(drawing)  # noqa: S314 - drawn here


def test_a_table_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(KeyError):
        filled("<!-- nonsense -->\n<!-- end -->", read())
