"""The words of an alert, in English and Japanese."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from zoneinfo import ZoneInfo

from app.cli.errors import without_passwords
from app.health import duration

Language = Literal["en", "ja"]
REASON_LENGTH = 500  # characters; the pages have all of it


@dataclass(frozen=True)
class Message:
    title: str
    body: str


WORDS: Mapping[Language, Mapping[str, str]] = {
    "en": {
        "opened": "Failing: {title}",
        "again": "Failing again: {title}",
        "recovered": "Recovered: {title}",
        "job": "the job failed, {count} in a row",
        "items": "{count} failed for this reason",
        "missed": "it has not run since it was due",
        "overran": "it has been running for too long",
        "beat": "no beat ticks",
        "none": "no worker listens to the queue {queue}",
        "refuses": "a worker of the queue {queue} can't start",
        "not_ready": "the worker is not ready",
        "held": "the queue {queue} is held",
        "alerts": "alerts don't get through to {channel}",
        "since": "since {since}",
        "downtime": "it was so from {since} to {recovered}, for {downtime}",
        "flapping": "it has come back {flaps} times: further changes are told when they last",
        "test": "Test message",
        "test_body": "Toban's alerts get through to here.",
    },
    "ja": {
        "opened": "障害: {title}",
        "again": "再発: {title}",
        "recovered": "復旧: {title}",
        "job": "ジョブが失敗しました（連続{count}回）",
        "items": "同じ理由で{count}件失敗しました",
        "missed": "予定の時刻になっても実行されていません",
        "overran": "実行が長すぎます",
        "beat": "beatが止まっています",
        "none": "キュー{queue}のワーカーがいません",
        "refuses": "キュー{queue}のワーカーが起動できません",
        "not_ready": "ワーカーの準備ができていません",
        "held": "キュー{queue}は停止中です",
        "alerts": "{channel}に通知が届きません",
        "since": "発生: {since}",
        "downtime": "発生 {since}、復旧 {recovered}（{downtime}）",
        "flapping": "{flaps}回再発しています。落ち着くまで続報は送りません",
        "test": "テスト通知",
        "test_body": "Tobanの通知はここに届きます。",
    },
}
# Kinds whose words say more than the English reason does in another language.
TOLD_BY_STATE = frozenset({"overdue", "beat", "worker", "queue", "alerts"})
TITLES_JA = {"beat": "beat", "alerts": "通知", "worker": "ワーカー"}


def message(alert: Mapping[str, Any], language: Language, zone: ZoneInfo, base_url: str | None) -> Message:
    """The message for an alert as `toban_claim_alerts` answers it; times in `zone`.

    Without the log tail, which may hold anything.
    """
    words = WORDS[language]
    if alert["kind"] == "test":
        return Message(f"[Toban] {words['test']}", words["test_body"])
    incident = alert["incident"]
    details: Mapping[str, Any] = incident["details"]
    recovered = alert["kind"] == "recovered"
    head = "recovered" if recovered else "again" if incident["flaps"] else "opened"
    kind = details["state"] if incident["kind"] in {"overdue", "worker", "queue"} else incident["kind"]
    values = {
        "title": _title(incident, language),
        "count": incident["count"],
        "queue": details.get("queue"),
        "channel": details.get("channel"),
        "flaps": incident["flaps"],
        "since": _local(incident["since"], zone),
        "recovered": _local(incident["recovered_at"], zone),
        "downtime": duration(float(incident["downtime"] or 0)),
    }
    lines = [
        words[kind].format(**values),
        _reason(incident, language),
        words["downtime" if recovered else "since"].format(**values),
        words["flapping"].format(**values) if incident["flaps"] and not recovered else "",
        f"{base_url.rstrip('/')}/incidents" if base_url else "",
    ]
    return Message(f"[Toban] {words[head].format(**values)}", "\n".join(filter(None, lines)))


def _title(incident: Mapping[str, Any], language: Language) -> str:
    if language == "ja" and incident["job_key"] is None and incident["kind"] in TITLES_JA:
        return TITLES_JA[incident["kind"]]
    return str(incident["title"])


def _reason(incident: Mapping[str, Any], language: Language) -> str:
    """What the job or the item said, as it said it; of our own reasons those that the language's words do not say."""
    if language != "en" and incident["kind"] in TOLD_BY_STATE and incident["details"].get("state") != "held":
        return ""
    reason = without_passwords(incident["reason"] or "").strip()
    return reason if len(reason) <= REASON_LENGTH else reason[: REASON_LENGTH - 1] + "…"


def _local(moment: str | None, zone: ZoneInfo) -> str:
    return f"{datetime.fromisoformat(moment).astimezone(zone):%Y-%m-%d %H:%M %Z}" if moment else ""
