"""The real app over a real PostgreSQL, asked by httpx."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.services import build_services
from tests.support.web import PASSWORD, Site, settings_for


@pytest.fixture
def open_site(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """A function: the site with these settings of the group `Web`."""
    opened: list[Site] = []

    def start(**web: Any) -> Site:
        opened.append(Site(build_services(settings_for(database_url, tmp_path, **web), patience=2)).start())
        return opened[-1]

    yield start
    for site in opened:
        site.stop()


@pytest.fixture
def site(open_site: Callable[..., Site]) -> Site:
    """With an operator, olga, and a viewer, viktor."""
    site = open_site()
    site.accounts.add("olga", PASSWORD, "operator")
    site.accounts.add("viktor", PASSWORD, "viewer")
    return site
