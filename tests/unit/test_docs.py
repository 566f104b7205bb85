"""What the docs list is what there is."""

import re

from tests.support.servers import ROOT


def test_every_log_event_is_listed() -> None:
    files = [path for folder in ("app", "tasks", "workers") for path in (ROOT / folder).rglob("*.py")]
    source = "".join(path.read_text(encoding="utf-8") for path in files)
    events = re.findall(r'(?:\blog\.\w+|_told)\(\s*"([a-z_]+\.[a-z_]+)"', source)
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    assert events
    assert set(events) <= set(re.findall(r"`([a-z_]+\.[a-z_]+)`", page))


def test_every_function_of_the_ledger_is_listed() -> None:
    """Those that the program calls: one jsonb object, run as the ledger's owner."""
    files = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "migrations").glob("*.sql")))
    called = re.findall(r"function public\.(toban_\w+)\(p jsonb\)[^$]*security definer", files)
    page = (ROOT / "docs/ledger.md").read_text(encoding="utf-8")
    assert called
    assert set(called) == set(re.findall(r"^\| `(toban_\w+)` \|", page, flags=re.MULTILINE))
