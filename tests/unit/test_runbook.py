"""The runbook has an answer for everything that a person can be told of."""

import re
from pathlib import Path

import pytest

from app import errors

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs/runbook.md").read_text("utf-8")


def kinds_of_errors() -> set[str]:
    classes = vars(errors).values()
    return {found.kind for found in classes if isinstance(found, type) and issubclass(found, errors.TobanError)} - {
        "error"
    }


def kinds_of_incidents() -> set[str]:
    """As the ledger's own functions write them: the second column of what is wrong."""
    newest = max(
        path for path in (ROOT / "migrations").glob("*.sql") if "function public.toban_troubles(" in path.read_text()
    )
    written = newest.read_text("utf-8").split("function public.toban_troubles(")[1].split("\n$$;")[0]
    found = set(re.findall(r"^  select '[^']*'(?: \|\| \S+)?, '([a-z]+)'", written, re.MULTILINE))
    return found | {"items", "queue"}


def test_the_kinds_are_found() -> None:
    assert {"job", "overdue", "worker", "beat", "alerts"} <= kinds_of_incidents()
    assert {"transient", "out_of_memory", "halted"} <= kinds_of_errors()


@pytest.mark.parametrize("kind", sorted(kinds_of_incidents()))
def test_every_kind_of_incident_has_a_chapter(kind: str) -> None:
    assert re.search(rf"^## {kind}$", RUNBOOK, re.MULTILINE)


@pytest.mark.parametrize("kind", sorted(kinds_of_errors() | {"bug"}))
def test_every_kind_of_error_has_a_line(kind: str) -> None:
    items = RUNBOOK.split("\n## items\n")[1].split("\n## ")[0]
    assert f"`{kind}`" in items


@pytest.mark.parametrize("cause", ["credit", "key", "model", "budget"])
def test_every_cause_of_a_hold_has_a_line(cause: str) -> None:
    assert f"| `{cause}` |" in RUNBOOK.split("\n## queue\n")[1]


def test_links_lead_somewhere() -> None:
    """In every page: files exist, and so do the headings that a link names."""
    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, heading = target.partition("#")
            there = (page.parent / name).resolve() if name else page
            if not there.exists() or (heading and heading not in headings(there)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def headings(page: Path) -> set[str]:
    """The anchors that a Markdown page has, as code hosts make them."""
    found = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in found}
