"""A new row starts at once although nobody ticks and no heartbeat is due."""

from pathlib import Path

from tests.support.servers import Redis, wait_for
from tests.support.system import System

# Beats of the heart that no test waits for.
SELDOM = {"TOBAN_HEARTBEAT": "300", "TOBAN_LEASE": "900"}


def test_a_whisper_worker_alone_hears_of_new_rows(
    database_url: str, redis_server: Redis, recording: Path, tmp_path: Path
) -> None:
    with System(database_url, redis_server, tmp_path, **SELDOM) as system:
        system.start("whisper")
        wait_for(lambda: "listen.start" in system.log("whisper"), "a listener", seconds=60)
        wait_for(lambda: len(system.sql("select id from workers")) == 2, "both children")
        system.add(recording)
        system.wait_done(60)
        for child in system.children("whisper"):
            child.kill()
        wait_for(lambda: system.log("whisper").count("listen.start") == 2, "one in its place", seconds=30)
        wait_for(lambda: len(system.sql("select id from workers")) == 4, "both new children")
        system.add(recording)
        assert system.wait_done(60) == {"completed": 2}
