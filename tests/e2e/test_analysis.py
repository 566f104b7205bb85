"""Waiting dashboard rows get their verdict: real beat and workers, and a server that misbehaves on demand."""

import time
from collections import deque
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from tests.e2e.conftest import NewSystem
from tests.support.openai_server import KEY, OpenAIServer, serving, verdict_for
from tests.support.servers import key_of
from tests.support.system import DEVICES, System, kill_tree

# Every write of a verdict is counted, by the app's own table.
COUNTED = """
create table writes (key text);
create function count_write() returns trigger language plpgsql as $$
begin
  insert into writes values (concat_ws('/', new.device_id, new.date, new.time_block));
  return null;
end $$;
create trigger counted after update of vibe_score on dashboard for each row
  when (new.vibe_score is not null) execute function count_write();
"""
ROWS = """
insert into dashboard (device_id, date, time_block, prompt, status)
select case i %% 2 when 0 then %s else %s end, date '2025-07-18' + i / 96,
       to_char(time '00:00' + (i %% 96) / 2 * interval '30 min', 'HH24-MI'),
       format('What happened in block %%s?', i), 'pending'
from generate_series(0, %s - 1) i
"""


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with serving(OpenAIServer()) as fake:
        yield fake


def of(server: OpenAIServer, **more: str) -> dict[str, str]:
    """The environment of a system that asks `server`."""
    return {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY, **more}


def insert(system: System, count: int) -> None:
    """`count` rows of two devices, each with a prompt of its own."""
    system.sql(ROWS, *DEVICES, count)


def gpt(system: System, name: str = "gpt", threads: int = 16) -> None:
    system.run(
        name, "-A", "workers.gpt", "worker", "-c", str(threads), "-n", f"{name}-{id(system)}@%h", "--without-mingle"
    )


def calls(system: System) -> list[dict[str, Any]]:
    return system.sql("select * from llm_calls order by id")


def incident(system: System) -> tuple[str, str]:
    rows = system.sql("select last_status, last_message from job_status where job_key = 'queue-gpt'")
    return (rows[0]["last_status"], rows[0]["last_message"]) if rows else ("", "")


@pytest.mark.parametrize("transport", ["postgres", "supabase"])
def test_every_row_ends_once_however_the_server_behaves(
    new_system: NewSystem, server: OpenAIServer, transport: str, request: pytest.FixtureRequest
) -> None:
    """Two workers of 16 threads. `make bench` does the same with a thousand rows."""
    server.shares = {"429": 0.10, "500": 0.05, "hang": 0.05, "invalid_json": 0.03, "nan": 0.02}
    server.retry_after = 0.2
    rest = {"DATABASE_URL": "", "SUPABASE_KEY": key_of("service_role")}
    if transport == "supabase":
        rest["SUPABASE_URL"] = request.getfixturevalue("project")
    system = new_system(**of(server, ANALYSIS_TIMEOUT="1.5"), **(rest if transport == "supabase" else {}))
    system.sql(COUNTED)
    insert(system, 200)
    gpt(system, "one")
    gpt(system, "two")
    states = system.wait_done(250)

    assert states["completed"] >= 195
    rows = system.sql("select * from dashboard order by prompt")
    for row in rows:
        if row["status"] == "completed":
            good = verdict_for(row["prompt"])
            assert (row["summary"], row["vibe_score"], row["behavior"]) == tuple(good.values())
            assert row["analysis_result"] == {**good, "model_used": "gpt-4.1-mini-2025-04-14"}
            assert row["processed_at"] is not None
    failed = [item for item in system.items() if item["state"] == "failed"]
    assert all(item["last_error"] and item["last_error_kind"] in {"transient", "bad_answer"} for item in failed)
    writes = system.sql("select key, count(*) as n from writes group by key")
    assert len(writes) == states["completed"]
    assert {row["n"] for row in writes} == {1}

    # What was spent is what the server has billed; a call without an answer is an estimate, and says so.
    told = calls(system)
    assert len(told) == server.stats()["calls"]
    assert {call["outcome"] for call in told} == {
        "ok", "rate_limited", "server_error", "timeout", "invalid_json", "out_of_range"
    }  # fmt: skip
    known = sum((call["cost"] for call in told if not call["possibly_billed"]), Decimal(0))
    hung = sum(call["outcome"] == "timeout" for call in told)
    assert sum(call["possibly_billed"] for call in told) == hung
    assert known <= server.dollars
    assert sum(server.billed.values()) - hung == sum(bool(call["completion_tokens"]) for call in told)
    paid = sum(bool(call["completion_tokens"]) or call["possibly_billed"] for call in told)
    # Of 100 calls 75 are good and 10 are paid for in vain: 0.13 of them for each good one, give or take.
    assert paid / states["completed"] <= 1 + 1.5 * 0.10 / 0.75
    # Nothing of what people said goes where it does not belong.
    assert not any("What happened" in system.log(name) for name in system.processes)


def test_a_worker_that_dies_in_a_call_leaves_a_note(new_system: NewSystem, server: OpenAIServer) -> None:
    server.script.extend(["hang"] * 3)
    system = new_system(**of(server))
    system.sql(COUNTED)
    insert(system, 3)
    gpt(system)
    system.wait_until(lambda _: len(server.calls) == 3)
    kill_tree(system.processes["gpt"].child.pid)
    gpt(system)
    assert system.wait_done() == {"completed": 3}
    told = calls(system)
    assert [(call["outcome"], call["possibly_billed"]) for call in told] == [("lost", True)] * 3 + [("ok", False)] * 3
    assert all(call["cost"] > 0 for call in told)
    assert [item["attempt"] for item in system.items()] == [2, 2, 2]
    assert system.sql("select count(*) as n from writes")[0]["n"] == 3


def test_used_up_credit_is_one_incident(new_system: NewSystem, server: OpenAIServer) -> None:
    server.shares = {"quota": 1.0}
    system = new_system(**of(server))
    insert(system, 60)
    gpt(system, threads=4)
    system.wait_until(lambda states: incident(system)[0] == "error" and states["pending"] == 60)
    assert "insufficient_quota" in incident(system)[1]
    assert KEY not in incident(system)[1]
    time.sleep(2)  # a few more heartbeats
    assert len(server.calls) <= 4, "whoever was asking already"
    assert {call["cost"] for call in calls(system)} == {0}
    [queue] = system.sql("select * from queue_holds")

    server.shares = {}
    system.sql("update queue_holds set until = now()")
    system.sql("update work_items set available_at = now() where state = 'pending'")
    assert system.wait_done() == {"completed": 60}
    system.wait_until(lambda _: incident(system)[0] == "success")
    assert "it was held since" in incident(system)[1]
    assert system.sql("select * from queue_holds") == []
    assert queue["cause"] == "credit"
    assert {item["tries"] for item in system.items()} == {1}, "it was no row's fault"


def test_a_budget_holds_and_goes_on_when_it_is_raised(new_system: NewSystem, server: OpenAIServer) -> None:
    system = new_system(**of(server, LLM_BUDGET_DAILY="0.0012"))
    insert(system, 40)
    gpt(system, threads=8)
    system.wait_until(lambda states: incident(system)[0] == "error" and not states["processing"])
    assert "LLM_BUDGET_DAILY is raised" in incident(system)[1]
    [spent] = system.sql("select sum(cost) as cost, count(*) as n from llm_calls")
    assert 0 < spent["cost"] <= Decimal("0.0012")
    assert spent["n"] == len(server.calls) < 40
    assert system.sql("select cost from llm_days")[0]["cost"] == spent["cost"]

    system.env["LLM_BUDGET_DAILY"] = "5"
    gpt(system, threads=8)
    system.sql("update queue_holds set until = now()")
    system.sql("update work_items set available_at = now() where state = 'pending'")
    assert system.wait_done() == {"completed": 40}
    system.wait_until(lambda _: incident(system)[0] == "success")


def test_rows_are_asked_again_by_hand(new_system: NewSystem, server: OpenAIServer) -> None:
    """A refusal is final, until a person says so; `celery call` finds rows by date, block and state."""
    server.by_prompt["block 3?"] = deque(["refusal"])
    system = new_system(**of(server))
    insert(system, 6)
    system.start("default")
    gpt(system)
    assert system.wait_done() == {"completed": 5, "failed": 1}
    [failed] = [item for item in system.items() if item["state"] == "failed"]
    assert "refused the prompt" in failed["last_error"]
    assert system.sql("select status from dashboard where prompt like '%%block 3?'")[0]["status"] == "failed"

    system.call("tasks.reprocess", "--kwargs", '{"source": "analysis", "date": "2025-07-18", "only_failed": true}')
    system.wait_until(lambda states: states == {"completed": 6})
    before = len(server.calls)
    again = '{"source": "analysis", "date": "2025-07-18", "time_block": "00-30", "model": "gpt-4o-mini"}'
    system.call("tasks.reprocess", "--kwargs", again)
    system.wait_until(lambda states: len(server.calls) == before + 2 and states == {"completed": 6})
    assert {call.body["model"] for call in server.calls[before:]} == {"gpt-4o-mini"}


def test_from_words_to_a_verdict_without_an_account(new_system: NewSystem) -> None:
    """The planner writes the prompts, the offline analyser answers them and says that it was it."""
    system = new_system(OPENAI_API_KEY="", OPENAI_BASE_URL="")
    system.start("beat")
    system.run("default", "-A", "workers.default", "worker", "-Q", "default,gpt", "-n", f"d-{id(system)}@%h")
    system.wait_until(lambda _: bool(system.sql("select 1 from jobs where job = 'timeblock-prompt'")))
    assert not system.sql("select enabled from jobs where job = 'timeblock-prompt'")[0]["enabled"]
    for block, text in (
        ("10-00", "What a wonderful, happy day!"),
        ("10-30", "This is a terrible mess."),
        ("11-00", ""),
    ):
        system.sql(
            "insert into transcripts (device_id, recorded_at, date, time_block, text, duration_seconds, model, engine)"
            " values ('kitchen', %s, '2025-07-18', %s, %s, 1, 'tiny', 'x')",
            f"2025-07-18T{block.replace('-', ':')}+09",
            block,
            text,
        )
        system.sql("insert into vibe_whisper values ('kitchen', '2025-07-18', %s, %s)", block, text)
    system.sql("update jobs set enabled = true where job = 'timeblock-prompt'")
    system.wait_until(lambda states: states["completed"] == 2)
    scores = {row["time_block"]: row for row in system.sql("select * from dashboard")}
    assert scores.keys() == {"10-00", "10-30"}
    assert scores["10-00"]["vibe_score"] > 0 > scores["10-30"]["vibe_score"]
    assert scores["10-00"]["analysis_result"]["model_used"] == "offline/vader"
    assert "terrible mess" in scores["10-30"]["prompt"]
    assert calls(system) == []
