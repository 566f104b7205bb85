"""The OpenAPI document says what the API does: schemathesis asks everything in it, well and badly."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts

from app.services import build_services
from app.web.api.problems import PATHS
from tests.conftest import TEMPLATE
from tests.support.servers import Postgres, Redis
from tests.support.web import Site, settings_for

SECRET, WAKE_SECRET = "webhook-secret", "w" * 32
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,unsupported_method,allow_header_conformance,negative_data_rejection,ignored_auth"
)
# Work may be waited for, and nobody works here; so a readiness that needs a worker would be 503, as it should be.
CONFIG = """
[parameters]
wait = 0
need = "database"
"""
# A badge is a picture, and the first page is there for people too.
ELSE = {"/", "/badge.svg"}


@pytest.fixture(scope="module")
def site(migrated: Postgres, _redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    url = migrated.create("openapi", TEMPLATE)
    settings = settings_for(
        url,
        tmp_path_factory.mktemp("audio"),
        portal={"webhook_secret": SECRET},
        broker=_redis.url,
        wake_secret=WAKE_SECRET,
    )
    site = Site(build_services(settings, patience=10)).start()
    yield site
    site.stop()


@pytest.fixture(scope="module")
def document(site: Site) -> dict[str, Any]:
    return dict(site.app.openapi())


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def test_every_operation_is_documented_whole(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        assert operation.get("summary"), name
        assert operation.get("description"), name
        assert operation.get("tags"), name
        for status, response in operation["responses"].items():
            assert response["description"], (name, status)
            for kind, content in response.get("content", {}).items():
                assert kind == "image/svg+xml" or content.get("schema"), (name, status)
                if int(status) >= 400 and "/api/monitor/" not in name and "/health/" not in name:
                    assert kind == "application/problem+json", (name, status)
                    assert content["example"]["status"] == int(status)


def test_what_is_a_page_and_what_is_the_api(site: Site, document: dict[str, Any]) -> None:
    documented = set(document["paths"]) - ELSE
    assert all(path.startswith(PATHS) for path in documented)
    everything = {
        str(route.path).replace(":path}", "}") for route in iter_route_contexts(site.app.routes) if route.path
    }
    assert {path for path in everything if path.startswith(PATHS)} - documented == {"/openapi.json"}


def test_whoever_asks_gets_what_is_documented(site: Site, tmp_path: Path) -> None:
    """No 5xx, no status and no answer that the document does not have, whatever is sent."""
    program = site.browser({"X-API-Key": site.accounts.add_key("openapi", ["read", "transcribe", "analyze", "badge"])})
    file = tmp_path / "openapi.json"
    file.write_bytes(program.get("/openapi.json").content)
    answer = run(file, site, program.headers["X-API-Key"])
    assert answer.returncode == 0, answer.stdout[-20_000:]
    assert "No issues found" in answer.stdout


def run(file: Path, site: Site, key: str) -> subprocess.CompletedProcess[str]:
    config = file.with_suffix(".toml")
    config.write_text(CONFIG, encoding="utf-8")
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", str(file),
        "--url", site.address, "--no-color",
        "--header", f"Authorization: Bearer {key}",
        "--header", f"X-TC-Portal-Webhook-Secret: {SECRET}",
        "--header", f"X-Toban-Wake-Secret: {WAKE_SECRET}",
        "--checks", CHECKS,
        "--phases", "examples,coverage,fuzzing",
        "--max-examples", "5", "--generation-deterministic",
        "--no-shrink", "--continue-on-failure", "--warnings", "off",
    ]  # fmt: skip
    # (It leaves its cache where it runs.)
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, cwd=file.parent)
