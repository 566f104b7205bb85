"""The main job against a Supabase project: supabase-py, a gateway, PostgREST, a service_role key; nothing direct."""

from pathlib import Path

from tests.e2e.conftest import NewSystem
from tests.support.servers import key_of


def test_the_main_job_over_rest(new_system: NewSystem, project: str, recording: Path) -> None:
    system = new_system(
        DATABASE_URL="", SUPABASE_URL=project, SUPABASE_KEY=key_of("service_role"), TOBAN_MAX_ATTEMPTS="2"
    )
    system.add(recording, 3)
    system.add(b"no sound")
    system.start()
    assert system.wait_done() == {"completed": 3, "failed": 1}
    assert len(system.sql("select * from vibe_whisper where transcription <> ''")) == 3
    system.wait_until(lambda _: bool(system.sql("select * from job_status where last_status = 'error'")))
    assert {row["last_status"] for row in system.sql("select * from job_status where job_key = 'transcription'")} == {
        "error"
    }


def test_the_anon_key_is_refused_at_start(new_system: NewSystem, project: str) -> None:
    system = new_system(DATABASE_URL="", SUPABASE_URL=project, SUPABASE_KEY=key_of("anon"))
    worker = system.run("worker", "-A", "workers.whisper", "worker")
    assert worker.child.wait(30) != 0
    assert "[E004] SUPABASE_KEY" in system.log("worker")
    assert "Traceback" not in system.log("worker")
