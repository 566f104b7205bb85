"""Brings `locales/*.po` up to the program: `python -m app.web.catalogues`.

New messages of languages other than English are then empty, and a test says so until somebody has translated them.
"""

from io import BytesIO
from pathlib import Path

from babel.messages import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po, write_po

from app.web.reader import LANGUAGES

PACKAGE = Path(__file__).parents[1]
LOCALES = Path(__file__).parent / "locales"
METHODS = [("web/**.py", "python"), ("monitor/**.py", "python"), ("web/templates/**", "jinja2")]
KEYWORDS = {"t": None, "nt": (1, 2), "mark": None}


def extracted() -> Catalog:
    """Every message of the program."""
    catalog = Catalog()
    found = extract_from_dir(PACKAGE, METHODS, {"web/templates/**": {"silent": "false", "trimmed": "true"}}, KEYWORDS)
    for file, _line, message, _comments, context in found:
        catalog.add(message, locations=[(file, 0)], context=context)
    return catalog


def updated(language: str) -> str:
    """The text that the catalogue of `language` should have, with the translations it has now."""
    path = LOCALES / f"{language}.po"
    catalog = read_po(BytesIO(path.read_bytes() if path.exists() else b""), locale=language)
    catalog.update(extracted(), no_fuzzy_matching=True)
    catalog.obsolete.clear()
    if language == "en":
        for message in catalog:
            message.string = message.id
    out = BytesIO()
    write_po(out, catalog, width=120, omit_header=True, sort_output=True, include_lineno=False)
    return out.getvalue().decode()


def main() -> None:
    for language in LANGUAGES:
        (LOCALES / f"{language}.po").write_text(updated(language), encoding="utf-8")


if __name__ == "__main__":
    main()
