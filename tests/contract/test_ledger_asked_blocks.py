"""A time block that somebody asks for: one row, one item, one verdict, however often and by how many."""

from functools import partial
from hashlib import sha256

import pytest

from app.errors import Refused
from tests.support.ledger import Attempt, Ledger, Row, at_once

BLOCK = {"device_id": "d1", "date": "2025-07-18", "time_block": "12-30"}
KEY = "d1/2025-07-18/12-30"
SOURCE, QUEUE = "analysis", "gpt"


def digest(prompt: str) -> str:
    return sha256(prompt.encode()).hexdigest()


def ask(ledger: Ledger, prompt: str = "How was it?", key: str | None = None, owner: str = "app", **block: str) -> str:
    values = {**BLOCK, **block, "prompt": prompt}
    answer = ledger.call(
        "ask_analysis", **values, owner=owner, idempotency_key=key, fingerprint=digest(str(sorted(values.items())))
    )
    return str(answer["how"])


def seen(ledger: Ledger, prompt: str | None = None, key: str = KEY) -> Row:
    (found,) = ledger.call("analyses", blocks=[{"key": key, "prompt": prompt and digest(prompt)}], queue=QUEUE)[
        "blocks"
    ]
    return dict(found)


def running(ledger: Ledger) -> Attempt:
    ledger.heartbeat("w1", 4, queues=[QUEUE])
    (item,) = ledger.claim(1, SOURCE, queue=QUEUE)
    return ledger.start(item)


def judge(ledger: Ledger, attempt: Attempt, score: float = 45) -> Row:
    verdict = {"summary": "s", "behavior": "b", "vibe_score": score}
    row = {**verdict, "analysis_result": {**verdict, "model_used": "m"}, "processed_at": "2025-07-18T04:00:00Z"}
    return dict(ledger.call("finish", **attempt.ids(), result={"row": row}))


def test_a_prompt_becomes_a_row_before_all_others_and_its_verdict_is_found(ledger: Ledger) -> None:
    for hour in range(3):
        ledger.block("d1", f"0{hour}-00")
    assert ask(ledger) == "opened"
    assert seen(ledger, "How was it?") | {"why": [], "available_at": None} == {
        "key": KEY, "state": "pending", "own": True, "result": None, "processed_at": None, "tries": 0, "error": None,
        "kind": None, "outcome": None, "why": [], "available_at": None,
    }  # fmt: skip
    assert [reason["code"] for reason in seen(ledger)["why"]] == ["no_worker"]
    attempt = running(ledger)
    assert attempt.answer["key"] == KEY
    assert seen(ledger)["why"] == []
    judge(ledger, attempt)
    found = seen(ledger, "How was it?")
    assert (found["state"], found["own"], found["result"]["vibe_score"]) == ("completed", True, 45)
    assert not seen(ledger, "Another?")["own"]
    assert seen(ledger, key="d1/2025-07-18/13-00") == {"key": "d1/2025-07-18/13-00", "state": None}
    (by_block,) = ledger.call("analyses", **BLOCK, queue=QUEUE, zone="Asia/Tokyo")["blocks"]
    assert by_block == found


def test_the_same_prompt_is_asked_for_once_until_it_is_answered(ledger: Ledger) -> None:
    assert at_once(*[lambda: ask(ledger)] * 2).count("opened") >= 1
    assert ask(ledger) == "joined"
    ledger.sql("update work_items set available_at = now() + interval '1 hour'")
    assert ask(ledger) == "joined"
    attempt = running(ledger)  # due at once
    assert ask(ledger) == "joined"
    assert judge(ledger, attempt)["written"]
    assert ledger.item(KEY, SOURCE)["attempt"] == 1
    assert ask(ledger) == "opened", "asked again, answered again, as the old service did"
    assert ledger.one("select status from dashboard") == "pending"


def test_a_later_prompt_wins_and_the_earlier_one_is_told_so(ledger: Ledger) -> None:
    ask(ledger, "first")
    attempt = running(ledger)
    assert ask(ledger, "second") == "opened"
    assert not seen(ledger, "first")["own"]
    assert not judge(ledger, attempt, 1)["written"]
    again = running(ledger)
    assert again.answer["row"]["prompt"] == "second"
    assert judge(ledger, again, 2)["written"]
    assert seen(ledger, "second")["result"]["vibe_score"] == 2


def test_at_once_with_different_prompts_one_is_left(ledger: Ledger) -> None:
    prompts = [f"prompt {n}" for n in range(6)]
    assert set(at_once(*[partial(ask, ledger, prompt) for prompt in prompts])) == {"opened"}
    assert sum(seen(ledger, prompt)["own"] for prompt in prompts) == 1
    assert ledger.states() == {"pending": 1}
    attempt = running(ledger)
    assert judge(ledger, attempt)["written"]
    assert ledger.states() == {"completed": 1}


def test_an_idempotency_key_is_one_request(ledger: Ledger) -> None:
    assert ask(ledger, key="k") == "opened"
    assert ask(ledger, key="k") == "repeated"
    judge(ledger, running(ledger))
    assert ask(ledger, key="k") == "repeated"
    assert ledger.state(KEY, SOURCE) == "completed", "a repetition asks for nothing"
    assert ask(ledger, "another prompt", key="k") == "mismatch"
    assert ask(ledger, key="k", time_block="13-00") == "mismatch"
    assert ledger.one("select count(*) from dashboard") == 1
    assert ask(ledger, key="k", owner="another app") == "opened"
    ledger.sql("update analysis_requests set created_at = now() - interval '25 h'")
    assert ask(ledger, "another prompt", key="k") == "opened", "a day later it may be used anew"
    assert sorted(at_once(*[lambda: ask(ledger, key="new", time_block="14-00")] * 4)) == ["opened", *["repeated"] * 3]


def test_in_shadow_mode_what_was_asked_for_is_known(ledger: Ledger) -> None:
    assert ask(ledger, key="k") == "opened"
    ledger.call("set_mode", source="analysis", mode="shadow", who="ann")
    assert seen(ledger)["why"] == [{"code": "shadow"}]
    assert [ask(ledger, key="k"), ask(ledger, "another", key="k")] == ["repeated", "mismatch"]
    assert [ask(ledger, key="new"), ask(ledger)] == ["shadow", "shadow"]
    assert ledger.one("select count(*) from analysis_requests") == 1


def test_a_key_whose_item_is_gone_is_new(ledger: Ledger) -> None:
    ask(ledger, key="k")
    ledger.call("erase", device="d1")
    assert ledger.one("select count(*) from analysis_requests") == 0
    ask(ledger, key="k")
    ledger.sql("delete from dashboard")
    ledger.sql("delete from work_items")
    assert ask(ledger, "another prompt", key="k") == "opened"
    assert ask(ledger, key="k") == "mismatch"
    ledger.sql("update analysis_requests set created_at = now() - interval '25 h'")
    assert not ledger.call("upkeep_requests", days=7)["more"]
    assert ledger.one("select count(*) from analysis_requests") == 0


def test_a_part_of_the_days_takes_their_keys_alone(ledger: Ledger) -> None:
    ask(ledger, key="a", device_id="a/b")
    ask(ledger, key="b", device_id="a/b", date="2025-07-19")
    ask(ledger, key="c")
    ledger.call("erase", device="a/b", since="2025-07-18", until="2025-07-18")
    assert {row["idempotency_key"] for row in ledger.sql("select * from analysis_requests")} == {"b", "c"}


def test_what_failed_goes_again(ledger: Ledger) -> None:
    ask(ledger)
    ledger.end("fail", running(ledger), kind="permanent", error="it was refused")
    found = seen(ledger, "How was it?")
    assert (found["state"], found["kind"], found["error"]) == ("failed", "permanent", "it was refused")
    assert ask(ledger) == "opened"
    assert ledger.state(KEY, SOURCE) == "pending"


def test_a_trigger_that_is_off_loses_nothing(ledger: Ledger) -> None:
    with ledger.altered("alter table dashboard disable trigger user", "alter table dashboard enable trigger user"):
        assert ask(ledger) == "opened"
    assert ledger.state(KEY, SOURCE) == "pending"


def test_a_block_that_the_table_does_not_take_is_refused(direct_ledger: Ledger) -> None:
    for block in ({"date": "2025-02-30"}, {"time_block": "twelve"}):
        with pytest.raises(Refused):
            ask(direct_ledger, **block)
    with (
        direct_ledger.altered(
            "alter table dashboard add column mood text not null", "alter table dashboard drop column mood"
        ),
        pytest.raises(Refused, match='null value in column "mood"'),
    ):
        ask(direct_ledger, key="k")
    assert direct_ledger.one("select count(*) from analysis_requests") == 0


def test_devices_with_slashes_keep_their_names(ledger: Ledger) -> None:
    ask(ledger, device_id="a/b%")
    assert ledger.item("a%2Fb%25/2025-07-18/12-30", SOURCE)["state"] == "pending"


def test_a_uuid_has_one_key_however_it_is_written(uuids: None, ledger: Ledger) -> None:
    device = "9F7D6E27-98C3-4C19-BDFB-F7FDA58B9A93"
    assert ask(ledger, device_id=device) == "opened"
    assert ask(ledger, device_id=device.lower()) == "joined"
    (found,) = ledger.call("analyses", **{**BLOCK, "device_id": device}, queue=QUEUE)["blocks"]
    assert (found["state"], found["key"]) == ("pending", f"{device.lower()}/2025-07-18/12-30")
    with pytest.raises(Refused, match="invalid input syntax for type uuid"):
        ask(ledger, device_id="d1")
