"""Pictures of every page for the docs: `make screenshots`, or `python -m bench.screenshots [page …]`.

A believable database, the real web process and Debian's Chromium; light, dark, and a phone in Japanese. Writes
`docs/images/*.png`.
"""

import shutil
import sys
import tempfile
import wave
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image
from playwright.sync_api import Browser, Page

from app.database.migrate import migrate
from app.services import build_services
from tests.support.believable import HOME, ZONE, believable, fill, keep_alive
from tests.support.chromium import chromium
from tests.support.servers import Postgres
from tests.support.web import PASSWORD, Site, settings_for

IMAGES = Path(__file__).parents[1] / "docs/images"


@dataclass(frozen=True)
class Look:
    """How a page is looked at: a name, and a browser window's options."""

    name: str
    options: dict[str, Any]


DESK = {"width": 1280, "height": 800}
LOOKS = (
    Look("light", {"viewport": DESK, "color_scheme": "light", "locale": "en-GB"}),
    Look("dark", {"viewport": DESK, "color_scheme": "dark", "locale": "ja-JP"}),
    Look(
        "phone",
        {
            "viewport": {"width": 390, "height": 844},
            "color_scheme": "light",
            "locale": "ja-JP",
            "device_scale_factor": 2,
        },
    ),
)


def pages(now: datetime) -> dict[str, str]:
    yesterday = now.astimezone(ZONE).replace(hour=14, minute=0, second=0, microsecond=0) - timedelta(days=1)
    day = f"/days/{HOME}/{yesterday:%Y-%m-%d}"
    afternoon = f"{yesterday.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    evening = f"{(yesterday + timedelta(hours=7)).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return {
        "incidents": "/incidents",
        "jobs": "/jobs",
        "job": "/jobs/transcription",
        "days": "/days",
        "day": f"{day}?at={afternoon}",
        "search": "/search?q=明日",
        "work": "/work",
        "items": "/work/transcription?state=failed",
        "item": f"/work/transcription/{HOME}/{evening}",
        "workers": "/workers",
    }


def take(browser: Browser, site: Site, url: str, wanted: dict[str, str], look: Look) -> None:
    """`url`: of the site's database."""
    keep_alive(url)
    context = browser.new_context(base_url=site.address, timezone_id="Asia/Tokyo", **look.options)
    page = context.new_page()
    page.goto("/sign-in")
    if "sign-in" in sys.argv[1:] or not sys.argv[1:]:
        picture(page, "sign-in", look)
    page.locator("[name=name]").fill("olga")
    page.locator("[name=password]").fill(PASSWORD)
    page.locator("[name=password]").press("Enter")
    page.wait_for_url("**/incidents")
    for name, path in wanted.items():
        keep_alive(url)
        page.goto(path)
        page.wait_for_load_state("load")
        page.wait_for_timeout(400)  # the player asks how long its recording is
        picture(page, name, look)
    context.close()


def picture(page: Page, name: str, look: Look) -> None:
    path = IMAGES / f"{name}-{look.name}.png"
    height = page.evaluate("document.documentElement.scrollHeight")
    width = look.options["viewport"]["width"]
    most = 1500 if width > 500 else 1400  # the rest is more of the same
    page.screenshot(path=path, clip={"x": 0, "y": 0, "width": width, "height": min(height, most)}, full_page=True)
    with Image.open(path) as shot:
        shot.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(path, optimize=True)


def silence(path: Path, seconds: int) -> None:
    """A recording for the player."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8000)
        file.writeframes(b"\x80" * (8000 * seconds))


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    server = Postgres().start()
    audio = Path(tempfile.mkdtemp(prefix="toban-pictures-"))
    try:
        url = server.create("pictures")
        migrate(url)
        settings = settings_for(url, audio, flower_url="http://localhost:5555")
        services = build_services(settings, patience=5)
        what = believable()
        fill(services.database, url, what)
        afternoon = parse_qs(urlsplit(pages(what.now)["day"]).query)["at"][0]
        (row,) = (
            row
            for row in what.rows["audio_files"]
            if row["device_id"] == HOME and f"{row['recorded_at']:%Y-%m-%dT%H:%M:%SZ}" == afternoon
        )
        silence(audio / row["file_path"], 1800)
        site = Site(services).start()
        try:
            site.accounts.add("olga", PASSWORD, "operator")
            wanted = {name: path for name, path in pages(what.now).items() if not sys.argv[1:] or name in sys.argv[1:]}
            with chromium() as browser:
                for look in LOOKS:
                    take(browser, site, url, wanted, look)
        finally:
            site.stop()
    finally:
        server.stop()
        shutil.rmtree(audio, ignore_errors=True)


if __name__ == "__main__":
    main()
