"""One message for an incident, one for its recovery; sent once, by whoever lives; a channel that fails is shown."""

from functools import partial

from tests.support.ledger import Ledger, at_once
from tests.support.monitor import alive, deliver, fail_item, incidents, look, messages, report, sync

JOB = "job/nightly"


def test_one_message_for_an_incident_and_one_for_its_recovery(ledger: Ledger) -> None:
    for _ in range(3):
        report(ledger, "error", message="失敗しました")
        look(ledger)
    [alert] = deliver(ledger)
    assert alert["kind"] == "opened"
    assert alert["channels"] == []
    assert (alert["incident"]["title"], alert["incident"]["reason"]) == ("夜間バックアップ", "失敗しました")
    look(ledger)
    assert deliver(ledger) == []
    report(ledger)
    look(ledger)
    [alert] = deliver(ledger)
    assert (alert["kind"], alert["incident"]["fingerprint"]) == ("recovered", JOB)
    assert alert["incident"]["downtime"] > 0
    assert messages(ledger) == [("opened", JOB), ("recovered", JOB)]


def test_many_items_of_one_reason_are_one_message(ledger: Ledger) -> None:
    sync(ledger)
    alive(ledger)
    for number in range(4):
        fail_item(ledger, f"file{number}.wav is corrupt", at=f"2025-07-18T0{number}:00:00Z")
        look(ledger)
    assert len(deliver(ledger)) == 1


def test_a_message_is_taken_by_one(ledger: Ledger) -> None:
    for job in "abcdef":
        report(ledger, "error", job=job)
    look(ledger)
    taken = at_once(*[partial(ledger.call, "claim_alerts", limit=2)] * 6)
    ids = [alert["id"] for answer in taken for alert in answer["alerts"]]
    assert len(ids) == len(set(ids)) == 6


def test_whoever_dies_with_a_message_loses_it_to_the_next(ledger: Ledger) -> None:
    report(ledger, "error")
    assert look(ledger)["due_alerts"] == 1
    [first] = ledger.call("claim_alerts")["alerts"]
    assert ledger.call("claim_alerts")["alerts"] == []
    assert look(ledger)["due_alerts"] == 0
    ledger.sql("update alerts set claimed_until = now() - interval '1 s'")
    [second] = ledger.call("claim_alerts")["alerts"]
    assert (second["id"], second["tries"]) == (first["id"], 2)


def test_only_messages_that_nobody_else_took(ledger: Ledger) -> None:
    report(ledger, "error")
    assert look(ledger, waited=60)["due_alerts"] == 0
    assert ledger.call("claim_alerts", waited=60)["alerts"] == []
    ledger.sql("update alerts set due_at = now() - interval '61 s'")
    assert look(ledger, waited=60)["due_alerts"] == 1
    assert len(ledger.call("claim_alerts", waited=60)["alerts"]) == 1


def test_a_failing_channel_gets_the_message_later_and_the_others_do_not_get_it_again(ledger: Ledger) -> None:
    report(ledger, "error")
    look(ledger)
    [alert] = ledger.call("claim_alerts")["alerts"]
    outcomes = [{"channel": "Slack 1"}, {"channel": "E-Mail 2", "error": "the server refused it"}]
    assert ledger.call("alert_sent", id=alert["id"], channels=outcomes) == {"sent": False}
    assert ledger.call("claim_alerts")["alerts"] == []
    assert 25 < ledger.one("select extract(epoch from due_at - now()) from alerts") <= 30
    ledger.sql("update alerts set due_at = now()")
    [again] = ledger.call("claim_alerts")["alerts"]
    assert again["channels"] == ["Slack 1"]
    assert ledger.call("alert_sent", id=alert["id"], channels=[{"channel": "E-Mail 2"}]) == {"sent": True}
    assert ledger.one("select channels from alerts") == ["E-Mail 2", "Slack 1"]


def test_a_failing_channel_is_itself_an_incident(ledger: Ledger) -> None:
    report(ledger, "error")
    look(ledger)
    deliver(ledger, "the server refused it")
    assert look(ledger)["opened"] == ["alerts/Slack 1"]
    found = incidents(ledger)["alerts/Slack 1"]
    assert (found["kind"], found["reason"]) == ("alerts", "the server refused it")
    [channel] = ledger.call("incidents")["channels"]
    assert (channel["channel"], channel["error"]) == ("Slack 1", "the server refused it")
    ledger.sql("update alerts set due_at = now()")
    deliver(ledger)
    assert look(ledger)["recovered"] == ["alerts/Slack 1"]
    assert ledger.call("incidents")["channels"] == []
    [channel] = ledger.call("alerts")["channels"]
    assert (channel["failing_since"], channel["fails_in_row"]) == (None, 0)


def test_a_message_is_tried_later_and_later_for_a_day(ledger: Ledger) -> None:
    report(ledger, "error")
    look(ledger)
    pauses = []
    for _ in range(9):
        ledger.sql("update alerts set due_at = now() where kind = 'opened'")
        [alert] = [one for one in deliver(ledger, "down") if one["incident"]["fingerprint"] == JOB]
        pauses.append(
            round(ledger.one("select extract(epoch from due_at - now()) from alerts where id = %s", alert["id"]) / 30)
        )
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    ledger.sql("update alerts set due_at = now() - interval '25 hours'")
    look(ledger)
    assert messages(ledger) in ([], [("opened", "alerts/Slack 1")])
    assert ledger.one("select error from alerts order by id limit 1") == "Slack 1: down"


def test_an_incident_that_was_over_before_anybody_was_told_is_not_told(ledger: Ledger) -> None:
    report(ledger, "error")
    look(ledger)  # quiet hours: nobody takes the message
    report(ledger)
    assert look(ledger)["due_alerts"] == 0
    assert messages(ledger) == []
    report(ledger, "error")
    look(ledger)
    assert messages(ledger) == [("opened", JOB)]


def test_flapping_is_told_as_one(ledger: Ledger) -> None:
    for _ in range(5):
        report(ledger, "error")
        look(ledger)
        deliver(ledger)
        report(ledger)
        look(ledger)
        deliver(ledger)
    # It failed, was well again, failed again: from then on its end is told when it lasts.
    assert messages(ledger) == [("opened", JOB), ("recovered", JOB), ("opened", JOB)]
    ledger.sql("update incidents set recovered_at = recovered_at - settle")
    look(ledger)
    assert messages(ledger)[3:] == [("recovered", JOB)]


def test_a_recovery_is_never_sent_before_its_beginning(ledger: Ledger) -> None:
    report(ledger, "error")
    look(ledger)
    deliver(ledger, "down")
    report(ledger)
    look(ledger)
    assert messages(ledger)[:2] == [("opened", JOB), ("recovered", JOB)]
    assert JOB not in [one["incident"]["fingerprint"] for one in deliver(ledger)]
    ledger.sql("update alerts set due_at = now()")
    assert [one["kind"] for one in deliver(ledger)] == ["opened"]
    assert [one["kind"] for one in deliver(ledger)] == ["recovered"]


def test_a_dismissed_incident_is_told_no_more_until_it_fails_again(ledger: Ledger) -> None:
    report(ledger, "error")
    look(ledger)
    deliver(ledger)
    [found] = incidents(ledger).values()
    assert ledger.call("dismiss", incident=found["id"], who="aya") == {"dismissed": True}
    assert ledger.call("dismiss", incident=found["id"], who="aya") == {"dismissed": False}
    look(ledger)
    answer = ledger.call("incidents")
    assert (answer["badge"], answer["incidents"], answer["recovered"]) == (0, [], [])
    report(ledger, "error")
    assert look(ledger)["opened"] == [JOB]
    [gone] = ledger.call("incidents")["recovered"]
    assert gone["dismissed_by"] == "aya"
    report(ledger)
    look(ledger)
    assert messages(ledger) == [("opened", JOB)]  # the second one was over before it was sent


def test_dismissed_and_then_well(ledger: Ledger) -> None:
    report(ledger, "error")
    look(ledger)
    deliver(ledger)
    ledger.call("dismiss", incident=incidents(ledger)[JOB]["id"])
    report(ledger)
    look(ledger)
    assert messages(ledger) == [("opened", JOB)]


def test_a_test_message_is_nobodys_incident(ledger: Ledger) -> None:
    alert = ledger.call("test_alert", who="aya")["id"]
    ledger.sql("update alerts set claimed_until = now() - interval '1 s'")
    assert ledger.call("claim_alerts")["alerts"] == []
    ledger.call("alert_sent", id=alert, channels=[{"channel": "Slack 1", "error": "down"}])
    assert ledger.one("select cancelled_at is not null from alerts")
    assert ledger.one("select what from audit_log") == "test alerts"
    assert look(ledger)["opened"] == ["alerts/Slack 1"]
