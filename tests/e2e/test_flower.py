"""Flower as operators start it, over a real worker: who comes in, and what it shows."""

import os
import signal
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.e2e.conftest import NewSystem
from tests.support.servers import Process, Redis, free_port
from tests.support.system import System

PROMPT = "Mika said that she hid the key under the lemon tree"
KEY = "9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93/2025-07-18/09-00"
ME = ("mika", "lemon-tree-42")
BROKER_PASSWORD = "pw-of-the-broker"
DATABASE_PASSWORD = "pw-of-the-database"


def start(new_system: NewSystem, **env: str) -> tuple[System, Process]:
    system = new_system(FLOWER_PORT=str(free_port()), **env)
    return system, system.run("flower", "-A", "app", "flower")


@pytest.mark.parametrize(
    ("sign_in", "words"), [("", "set FLOWER_BASIC_AUTH=name:password"), ("mika", "[E065] FLOWER_BASIC_AUTH")]
)
def test_without_a_sign_in_it_does_not_start(new_system: NewSystem, sign_in: str, words: str) -> None:
    """Also not in a folder that has no configuration for it: a process of the tests works in one of its own."""
    system, flower = start(new_system, FLOWER_BASIC_AUTH=sign_in)
    assert flower.child.wait(30) == 1
    assert words in system.log("flower")
    assert "Traceback" not in system.log("flower")


def tasks(client: httpx.Client) -> list[dict[str, Any]]:
    """The rows of Flower's table of tasks, as its page asks for them."""
    columns = {"columns[0][data]": "name", "order[0][column]": "0", "order[0][dir]": "asc", "search[value]": ""}
    answer = client.get("tasks/datatable", params={"draw": "1", "start": "0", "length": "100", **columns})
    return list(answer.raise_for_status().json()["data"])


def test_it_shows_what_a_task_is_about_and_no_secret(new_system: NewSystem, redis_server: Redis) -> None:
    system, flower = start(
        new_system,
        FLOWER_BASIC_AUTH=f"somebody:else,{':'.join(ME)}",
        FLOWER_URL_PREFIX="flower",
        WEB_BASE_URL="https://toban.example.com/app/",
        # The server takes any password for this name.
        REDIS_URL=redis_server.url.replace("redis://", f"redis://default:{BROKER_PASSWORD}@"),
        PGPASSWORD=DATABASE_PASSWORD,
        OPENAI_API_KEY="",
    )
    base = f"http://127.0.0.1:{system.env['FLOWER_PORT']}/flower/"

    def up() -> bool:
        try:
            return httpx.get(f"{base}healthcheck", timeout=5).text == "OK"
        except httpx.HTTPError:
            return False

    system.run("default", "-A", "workers.default", "worker", "-Q", "default,gpt", "-c", "4", "-n", "everything@%h")
    flower.wait_for(up, "Flower")
    for sign_in in (None, ("mika", "wrong"), ("", "")):
        for path in ("", "tasks", "workers", "broker", "api/tasks", "api/workers"):
            assert httpx.get(base + path, auth=sign_in).status_code == 401, (path, sign_in)

    device, day, block = KEY.split("/")
    with httpx.Client(base_url=base, auth=ME, timeout=20) as client:
        # What was before Flower listened it does not know.
        system.wait_until(lambda _: "everything@" in client.get("workers", params={"json": "1"}).text)
        system.sql(
            "insert into dashboard (device_id, date, time_block, prompt, status) values (%s, %s, %s, %s, 'pending')",
            device, day, block, PROMPT,
        )  # fmt: skip
        system.wait_until(lambda states: states["completed"] == 1)
        system.wait_until(
            lambda _: any(row["state"] == "SUCCESS" and row["name"] == "tasks.analysis" for row in tasks(client))
        )
        [row] = [row for row in tasks(client) if row["name"] == "tasks.analysis"]
        assert row["args"] == f"{KEY} (claim 1)"
        page = client.get(f"task/{row['uuid']}").text
        assert f"https://toban.example.com/app/work/analysis/{quote(KEY, safe='')}" in page

        client.get("workers", params={"refresh": "1"})
        shown = {path: client.get(path).raise_for_status().text for path in ("", "tasks", "broker", "api/tasks")}
        shown["metrics"] = client.get("metrics").text
        shown["worker"] = client.get(f"worker/{row['worker']}").raise_for_status().text
        assert "broker_url" in shown["worker"].lower().replace(" ", "_")
        shown |= {"task": page, "table": str(tasks(client)), "log": system.log("flower")}
        for name, text in shown.items():
            for secret in (PROMPT, "lemon", BROKER_PASSWORD, DATABASE_PASSWORD):
                assert secret not in text, (name, secret)

        # Another site's page can't use the sign-in that the browser sends along.
        revoke = f"api/task/revoke/{row['uuid']}"
        assert client.post(revoke, headers={"Origin": "https://evil.example"}).status_code == 403
        assert client.post(revoke, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert client.post(revoke, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200
    os.kill(flower.child.pid, signal.SIGTERM)
    assert flower.child.wait(20) == 0
