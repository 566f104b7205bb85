"""The web process over a real PostgreSQL, and visitors with a browser's cookies but without scripts."""

import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx
from argon2 import PasswordHasher
from fastapi import FastAPI

from app.services import Services
from app.settings import GROUPS, Settings
from app.web.accounts import Accounts
from app.web.server import build_server, listen
from tests.support.servers import wait_for

PASSWORD = "a-long-enough-password"
HTML = {"Accept": "text/html"}


def settings_for(
    database_url: str,
    audio: Path,
    *,
    portal: Mapping[str, Any] | None = None,
    gpt: Mapping[str, Any] | None = None,
    broker: str | None = None,
    **web: Any,
) -> Settings:
    """`portal`, `gpt`: settings of these groups; `broker`: its address; `web`: settings of the group `Web`."""
    values: dict[str, dict[str, Any]] = {
        "broker": {"url": broker} if broker else {},
        "database": {"database_url": database_url},
        "audio": {"audio_folder": str(audio)},
        "portal": dict(portal or {}),
        "gpt": dict(gpt or {}),
        "web": {"web_secret_key": "k" * 40, **web},
    }
    return Settings(**{name: group(_env_file=None, **values.get(name, {})) for name, group in GROUPS.items()})


class Browser(httpx.Client):
    """Keeps cookies, does not follow redirects, and fills in forms as a person does."""

    def __init__(self, address: str, headers: Mapping[str, str] = HTML) -> None:
        super().__init__(base_url=address, headers=headers, timeout=30)

    def csrf(self, path: str) -> str:
        """The token in the first form of a page."""
        found = re.search(r'name="csrf" value="([^"]+)"', self.get(path).text)
        assert found, path
        return found[1]

    def submit(self, path: str, page: str | None = None, **fields: str) -> httpx.Response:
        """Send a form of `page` (default: the page of the same address)."""
        return self.post(path, data={"csrf": self.csrf(page or path), **fields})

    def sign_in(self, name: str = "olga", password: str = PASSWORD, **fields: str) -> httpx.Response:
        return self.submit("/sign-in", name=name, password=password, **fields)


class Site:
    """The web process, in a thread of this one; `browser()` is a new visitor."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.server = build_server(services)
        self.app: FastAPI = self.server.config.app  # type: ignore[assignment]
        self.accounts: Accounts = self.app.state.toban.accounts
        self.accounts._hasher = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)  # a test has no time
        self._socket = listen("127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._browsers: list[Browser] = []

    def start(self) -> Self:
        self._thread.start()
        wait_for(lambda: self.server.started, "the web server")
        return self

    def stop(self) -> None:
        self.app.state.toban.events.drop()  # a signal would do that
        self.server.should_exit = True
        self._thread.join(20)
        for browser in self._browsers:
            browser.close()
        self.services.close()

    def browser(self, headers: Mapping[str, str] = HTML) -> Browser:
        self._browsers.append(Browser(self.address, headers))
        return self._browsers[-1]

    def signed_in(self, name: str = "olga") -> Browser:
        browser = self.browser()
        assert browser.sign_in(name).status_code == 303
        return browser
