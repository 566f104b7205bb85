"""A database as it looks after some weeks of use, for pictures of the pages and for measuring them.

Everything is written as it would have become, with the triggers off; the incidents are what `toban_monitor()` finds.
"""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString
from uuid import uuid4
from zoneinfo import ZoneInfo

import psycopg
from psycopg.types.json import Jsonb

import tasks
from app.database import Database
from beat_schedule import timetable

assert tasks  # its sources are in the timetable
ZONE = ZoneInfo("Asia/Tokyo")
HOME = "9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93"
DEVICES = [HOME, "d067d407-cf73-4174-a9c1-d91fb60d64d0", "studio-2"]
HALF_HOUR = timedelta(minutes=30)

# What a household says in half an hour, and how a language model reads it.
TALKS: list[tuple[int, str, str, list[str]]] = [
    (35, "家族で朝食をとり、穏やかに一日の予定を話しています。", "食事・会話", [
        "おはよう。よく眠れた？", "うん、まあまあ。パンもう焼けてる？", "焼けてるよ。ジャムは冷蔵庫の右の棚。",
        "今日は何時に帰ってくるの？", "六時半くらいかな。買い物してから帰るね。", "じゃあ卵と牛乳をお願い。",
    ]),
    (-20, "出かける前の支度で慌ただしく、少しいらだちが見られます。", "外出準備", [
        "鍵どこに置いた？", "玄関の箱の中じゃない？", "ないよ。さっき見たもん。", "あ、コートのポケットに入ってた。",
        "もう、先に言ってよ。バス行っちゃうよ。", "ごめんごめん。走ろう。",
    ]),
    (10, "一人で静かに家事をしながら、ときどき独り言を話しています。", "家事", [
        "洗濯物、今日は外に干せるかな。", "天気予報だと午後から雨が降るって。", "じゃあ部屋の中にしておこう。",
        "この靴下、片方しかない。", "あとで探そう。",
    ]),
    (55, "孫とのビデオ通話で笑い声が多く、とても明るい雰囲気です。", "ビデオ通話", [
        "もしもし、見えてる？", "見えてるよ、おばあちゃん。", "大きくなったねえ。運動会はどうだった？",
        "かけっこで二番だったよ。", "すごいじゃない。お祝いしないとね。", "次の日曜日に遊びに行っていい？",
        "もちろん。好きなものを作って待ってるよ。",
    ]),
    (20, "A calm meeting about next week's plan; everybody gets a word in.", "meeting", [
        "Shall we start with the delivery on Monday?", "The parts arrive in the morning, so testing begins at noon.",
        "I can take the first half, if somebody looks after the phones.", "I'll do that. What about the label printer?",
        "It prints again. The roll was in the wrong way round.", "Good. Then we only need the room until four.",
    ]),
    (-45, "電話の相手に強い口調で話し、疲れた様子がうかがえます。", "電話", [
        "その件は先週もお伝えしましたよね。", "ええ、まだ届いていません。", "もう三回目の電話です。",
        "担当の方はいつ戻られますか。", "わかりました。夕方にもう一度かけます。",
    ]),
    (40, "夕食を囲んで一日の出来事を楽しく話しています。", "食事・会話", [
        "今日のカレー、いつもと違うね。", "隠し味にりんごを入れてみたの。", "おいしい。おかわりある？",
        "あるよ。そういえば、隣の犬が子犬を産んだって。", "本当？見に行きたいな。", "明日の散歩のときに寄ってみよう。",
    ]),
    (5, "テレビの音の合間に短い会話があり、落ち着いています。", "くつろぎ", [
        "この俳優、前の番組にも出てたよね。", "そうだっけ。", "お茶いれるけど飲む？", "うん、ありがとう。",
        "明日は早いからもう寝るね。",
    ]),
]  # fmt: skip

DAMAGED = "{path} can't be read: invalid data found when processing input, after {seconds} s of sound"
LOST = (
    "given up after 5 of 5 tries: its worker whisper@voice-1/41{n} gave no more news (killed, out of memory or cut off)"
)
BROKEN = "permission denied for table dashboard"
NO_JSON = "the answer is no JSON, after 2 tries: it ends after {n} characters, within a string"


@dataclass
class Believable:
    """Rows by table, as columns of JSON; `now`: the moment of the picture."""

    now: datetime
    weeks: float
    devices: list[str]
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    _items: int = 0

    def add(self, table: str, **values: Any) -> None:
        self.rows.setdefault(table, []).append(values)

    # --- recordings and their analyses ------------------------------------------------------------------------------

    def build(self) -> "Believable":
        today = self.now.astimezone(ZONE).replace(hour=0, minute=0, second=0, microsecond=0)
        days = max(2, round(self.weeks * 7))
        for device in self.devices:
            for back in range(days, 0, -1):
                for slot in range(48):
                    self.slot(device, today - timedelta(days=back) + slot * HALF_HOUR, slot, back)
        self.jobs()
        self.workers()
        return self

    def slot(self, device: str, at: datetime, slot: int, back: int) -> None:
        """`back`: days before today; of the newest day the evening has not been heard yet."""
        recorded = at.astimezone(UTC)
        key = f"{device}/{recorded:%Y-%m-%dT%H:%M:%SZ}"
        path = f"files/{device}/{at:%Y-%m-%d/%H-%M}/audio.wav"
        state = "completed"
        if slot < 12 or (device != HOME and self.chance.random() < 0.3):
            state = "skipped" if slot % 3 or device != HOME else "nothing"
        if back == 1 and device == HOME and slot in {19, 31}:
            state = "failed"
        if back == 1 and slot >= 41:
            state = "processing" if slot == 41 and device != "studio-2" else "pending"
        if back > 2 and device == HOME and slot == 30 and back % 3 == 0:
            state = "failed"
        if state == "nothing":
            return
        self.add(
            "audio_files",
            device_id=device,
            recorded_at=recorded,
            file_path=path,
            transcriptions_status="pending" if state == "processing" else state,
        )
        talk = TALKS[self.talk_of(device, slot)]
        damaged = DAMAGED.format(path=path, seconds=self.chance.randint(2, 900))
        error = {
            "failed": damaged if slot != 31 else LOST.format(n=slot),
            "skipped": "nothing was recorded: there is no such audio object",
        }
        self.item("transcription", key, device, recorded, state, error.get(state), 95, {"device_id": device})
        if state == "completed":
            self.transcript(device, recorded, at, talk)
            self.analysis(device, at, slot, back, talk)

    @staticmethod
    def talk_of(device: str, slot: int) -> int:
        if device == "studio-2":
            return 4
        # Until which slot of the day which talk goes on.
        until = {16: 0, 18: 1, 26: 2, 28: 5, 34: 3, 38: 2, 42: 6, 48: 7}
        return next(talk for end, talk in until.items() if slot < end)

    def transcript(self, device: str, recorded: datetime, at: datetime, talk: tuple[int, str, str, list[str]]) -> None:
        start = self.chance.uniform(2, 60)
        segments: list[dict[str, Any]] = []
        for sentence in talk[3]:
            length = 1 + len(sentence) * (0.07 if sentence.isascii() else 0.16)
            segments.append({"start": round(start, 2), "end": round(start + length, 2), "text": sentence})
            start += length + self.chance.uniform(0.3, 60)
        language = "en" if talk[3][0].isascii() else "ja"
        words = (" " if language == "en" else "").join(segment["text"] for segment in segments)
        block = f"{at:%H-%M}"
        self.add(
            "transcripts",
            device_id=device, recorded_at=recorded, date=at.date(), time_block=block, text=words,
            segments=Jsonb(segments), language=language, duration_seconds=1800.0, model="small",
            engine="faster-whisper", real_time_factor=round(self.chance.uniform(0.045, 0.07), 3),
        )  # fmt: skip
        self.add("vibe_whisper", device_id=device, date=at.date(), time_block=block, transcription=words)

    def analysis(self, device: str, at: datetime, slot: int, back: int, talk: tuple[int, str, str, list[str]]) -> None:
        score, summary, behavior, _ = talk
        state = "pending" if back == 1 and slot >= 39 else "failed" if back == 1 and slot == 27 else "completed"
        done = state == "completed"
        shown = max(-95, min(95, score + 12 * math.sin(slot / 3 + back) + self.chance.gauss(0, 9)))
        key = f"{device}/{at:%Y-%m-%d}/{at:%H-%M}"
        self.add(
            "dashboard",
            device_id=device, date=at.date(), time_block=f"{at:%H-%M}", prompt="…", status=state,
            summary=summary if done else None, behavior=behavior if done else None,
            vibe_score=round(shown) if done else None,
        )  # fmt: skip
        error = NO_JSON.format(n=self.chance.randint(300, 900)) if state == "failed" else None
        item = self.item("analysis", key, device, None, state, error, 3.2, {"device_id": device})
        if done:
            tokens = self.chance.randint(700, 1900)
            self.add(
                "llm_calls",
                item_id=item, source="analysis", key=key, attempt=1, model="gpt-4o-mini", outcome="ok",
                prompt_tokens=tokens, cached_tokens=0, completion_tokens=150, latency_ms=self.chance.randint(900, 4200),
                cost=round(tokens * 15e-8 + 150 * 6e-7, 6), day=at.date(), sent_at=self.now - timedelta(days=back - 1),
            )  # fmt: skip

    def item(
        self,
        source: str,
        key: str,
        device: str,
        at: datetime | None,
        state: str,
        error: str | None,
        takes: float,
        ref: Any,
    ) -> int:
        """`takes`: about how long an attempt runs, seconds. What ended, ended within the last two hours or long ago."""
        self._items += 1
        ended = state in {"completed", "failed", "skipped"}
        recent = self._items % 9 == 0
        ran = takes * self.chance.uniform(0.7, 1.6)
        finished = self.now - (
            timedelta(minutes=self.chance.uniform(0.2, 59)) if recent else timedelta(hours=self.chance.uniform(2, 40))
        )
        started = (
            finished - timedelta(seconds=ran) if ended else self.now - timedelta(seconds=self.chance.uniform(20, 70))
        )
        opened = (
            started - timedelta(seconds=self.chance.uniform(1, 180))
            if ended
            else self.now - timedelta(minutes=self.chance.uniform(4, 70))
        )
        worker = "gpt@voice-1/310#310" if source == "analysis" else f"whisper@voice-1/290#{291 + (device == HOME)}"
        tries = 0 if state == "pending" else 5 if error and error.startswith("given up") else 1
        kind = {"failed": "lost" if tries == 5 else "permanent", "skipped": "nothing_there"}.get(state)
        again = at is not None and state == "pending" and self.again(device, at)
        if again:
            error, kind, tries = "the bucket answered 503 Slow Down; it goes again later", "transient", 1
            started, finished, opened = (self.now - timedelta(seconds=n) for n in (52, 21, 4200))
        self.add(
            "work_items",
            id=self._items, source=source, key=key, ref=Jsonb(ref), partition=device, at=at, state=state,
            available_at=self.now + timedelta(seconds=61) if again else opened,
            opened_at=opened,
            queue="gpt" if source == "analysis" else "whisper",
            claim_no=1, task_id=uuid4(), claimed_at=opened, attempt=tries, tries=tries, started_revision=1,
            worker=worker if tries else None, started_at=started if tries else None,
            run_until=self.now + timedelta(hours=4) if state == "processing" else None,
            lease_until=self.now + timedelta(hours=1) if state == "processing" else None,
            progress=Jsonb({"done": self.chance.randint(400, 1500), "total": 1800}) if state == "processing" else None,
            progress_at=self.now, finished_at=finished if ended else None,
            incident_since=finished if state == "failed" else None, last_error=error, last_error_kind=kind,
        )  # fmt: skip
        for number in range(1, tries + 1 if ended or again else tries):
            last = number == tries
            self.add(
                "work_attempts",
                item_id=self._items, attempt=number, source=source, try_=number, max_attempts=5, worker=worker,
                opened_at=opened, started_at=started - (tries - number) * timedelta(minutes=4),
                ended_at=finished - (tries - number) * timedelta(minutes=4),
                outcome="retry" if again else state if last else "lost",
                kind=kind if last else "lost",
                error=error if last else f"try {number} of 5: its worker {worker} gave no more news",
            )  # fmt: skip
        return self._items

    def again(self, device: str, at: datetime) -> bool:
        """Whether this item has been tried and waits for its next attempt: 21:00 of the newest day."""
        local = at.astimezone(ZONE)
        return device == HOME and local.hour == 21 and local.minute == 0

    # --- jobs and workers -------------------------------------------------------------------------------------------

    def jobs(self) -> None:
        number = 0
        for job in timetable().values():
            every = max(job.every, timedelta(seconds=10))
            slot = self.now - timedelta(seconds=self.now.timestamp() % every.total_seconds())
            broken = job.name == "reconcile"
            for back in range(28, -1, -1):
                number += 1
                begun = slot - back * every + timedelta(seconds=self.chance.uniform(0.1, 2))
                if begun > self.now:
                    begun = self.now - timedelta(seconds=3)
                found = self.chance.randint(0, 14) if job.source else 0
                sent = min(found, self.chance.randint(1, 4)) if found else 0
                took = timedelta(seconds=0.3 + abs(self.chance.gauss(0.6, 0.35)) * (6 if not job.source else 1))
                failed = broken and back < 2
                self.add(
                    "runs",
                    id=number, job=job.name, slot=slot - back * every, state="error" if failed else "success",
                    worker="default@voice-1/270#270", started_at=begun, finished_at=begun + took, lease_until=begun,
                    period_from=begun - timedelta(hours=9) if sent else None,
                    period_to=begun - timedelta(hours=1) if sent else None,
                    filters=Jsonb({"date": "yesterday"} if job.source == "transcription" else {}), dates=[],
                    found=found, dispatched=sent, finished=sent, failed=0,
                    message=BROKEN if failed else f"{sent} sent" if job.source else "0 opened, 0 closed",
                )  # fmt: skip
            self.add(
                "jobs",
                job=job.name, title=job.title, source=job.source, every=job.every, at=job.at, zone=job.zone,
                last_slot=slot, last_started_at=begun, last_finished_at=begun + took,
                last_status="error" if broken else "success",
                last_message=BROKEN if broken else "",
                filters=Jsonb({"date": "yesterday"} if job.source == "transcription" else {}),
                batch_limit=50 if job.source == "transcription" else None, created_at=self.now - timedelta(days=60),
            )  # fmt: skip
        self.add("job_watch", job_key="reconcile", fails_in_row=2, failing_since=self.now - timedelta(minutes=7))

    def workers(self) -> None:
        for node, queue, pids, limit, rss in (
            ("whisper@voice-1/290", "whisper", (291, 292), 950_000_000, 612_000_000),
            ("gpt@voice-1/310", "gpt", (310,), None, 148_000_000),
            ("default@voice-1/270", "default", (270,), None, 131_000_000),
            ("whisper@voice-2/77", "whisper", (78,), 950_000_000, 588_000_000),
        ):
            away = node.startswith("whisper@voice-2")
            for pid in pids:
                self.add(
                    "workers",
                    id=f"{node}#{pid}", node=node, pid=pid, queues=[queue], slots=1 if queue == "whisper" else 4,
                    busy=1 if queue == "whisper" and not away else 0, rss_bytes=rss + pid * 90_000, memory_limit=limit,
                    started_at=self.now - timedelta(hours=31), idle_since=None,
                    seen_at=self.now - timedelta(minutes=14 if away else 0, seconds=4),
                    expires_at=self.now + timedelta(minutes=-13 if away else 60),
                )  # fmt: skip


def believable(now: datetime | None = None, weeks: float = 1, devices: list[str] | None = None) -> Believable:
    """Three devices over a week, or whatever is asked for."""
    return Believable(now or datetime.now(UTC), weeks, devices or DEVICES).build()


def fill(database: Database, url: str, what: Believable) -> None:
    """Write `what` into an empty database and let the monitor look at it. `url`: of a superuser."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")
        for table, rows in what.rows.items():
            _copy(connection, table, rows)
        connection.execute(
            "update work_items set fingerprint = toban_fingerprint(source, last_error_kind, last_error)"
            " where incident_since is not null"
        )
        connection.execute(
            "select setval(pg_get_serial_sequence('work_items', 'id'), (select max(id) from work_items))"
        )
        connection.execute("select setval(pg_get_serial_sequence('runs', 'id'), (select max(id) from runs))")
        connection.execute("insert into beats (beat, node) values ('beat@voice-1', 'voice-1')")
        connection.execute("set session_replication_role = default")
        connection.execute("analyze")
    for report in _reports(what.now):
        database.call("toban_job_report", **report)
    database.call("toban_report")
    database.call(
        "toban_monitor", timetable=list(timetable()), queues={"whisper": ["transcription"], "gpt": ["analysis"]}
    )
    with psycopg.connect(url, autocommit=True) as connection:
        _past(connection)
    for edit in (
        {"job": "transcription", "batch_limit": 50, "who": "haruka"},
        {"job": "transcription", "filters": {"date": "yesterday"}, "every": 10, "who": "ken"},
        {"job": "retention", "at": 10800, "who": "ken"},
    ):
        database.call("toban_edit_job", **edit)


ALIVE: LiteralString = """
update beats set ticked_at = now();
update workers set seen_at = now() - interval '4 s' where expires_at > now();
update queue_watch set alive_at = now();
update jobs set last_slot = now() - interval '4 s', last_started_at = now() - interval '4 s' where every < '5 min'
"""


def keep_alive(url: str) -> None:
    """Beat has just ticked and workers have just reported, so that the monitor of a running site finds nothing new."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute(ALIVE)


def _copy(connection: psycopg.Connection[Any], table: str, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = ", ".join(f'"{name.removesuffix("_")}"' for name in names)
    with connection.cursor().copy(f"copy {table} ({columns}) from stdin".encode()) as copy:
        for row in rows:
            copy.write_row([row.get(name) for name in names])


def _reports(now: datetime) -> Iterator[dict[str, Any]]:
    """Scripts outside that report for themselves."""
    log = (
        "[02:00:01] dumping orders … 182 MB\n[02:03:44] dumping customers … 41 MB\n"
        "[02:04:10] uploading to s3://backup-tokyo/2026/ …\n"
        "upload failed: An error occurred (AccessDenied) when calling the PutObject operation: Access Denied\n"
        "[02:04:12] giving up after 3 tries"
    )
    for back in range(9, -1, -1):
        status, message = (
            ("error", "S3 へのアップロードに失敗しました (AccessDenied)")
            if back < 2
            else ("success", "223 MB を保存しました")
        )
        finished = now - timedelta(hours=5, minutes=12) - timedelta(days=back)
        yield {
            "job_key": "nightly-backup", "title": "夜間バックアップ", "status": status, "message": message,
            "finished_at": finished.isoformat(),
            "started_at": (finished - timedelta(seconds=251 + 7 * back)).isoformat(),
            "run_id": f"backup-{back}", "exit_code": 1 if status == "error" else 0, "expect_every": 86400,
            **({"log": log} if status == "error" else {}),
        }  # fmt: skip
    for back in range(9, -1, -1):
        finished = now - timedelta(hours=3 + back, minutes=20)
        yield {
            "job_key": "invoice-mail", "title": "請求書メール送信", "status": "success",
            "message": "18 件を送信しました",
            "finished_at": finished.isoformat(),
            "started_at": (finished - timedelta(seconds=40 + back)).isoformat(),
            "run_id": f"invoice-{back}", "expect_every": 3600, "grace": 600,
        }  # fmt: skip
    for back in range(9, -1, -1):
        finished = now - timedelta(minutes=11 + 15 * back)
        yield {
            "job_key": "photo-sync", "title": "Photo sync", "status": "success", "message": "42 pictures copied",
            "finished_at": finished.isoformat(),
            "started_at": (finished - timedelta(seconds=21 + 3 * (back % 4))).isoformat(),
            "run_id": f"photo-{back}", "expect_every": 900,
        }  # fmt: skip


PAST: LiteralString = """
insert into incidents
  (fingerprint, kind, job_key, title, reason, details, opened_at, last_at, recovered_at, settle, flaps)
values ('overdue/transcription', 'overdue', 'transcription', 'Transcription', 'it was due',
        jsonb_build_object('state', 'missed', 'due_at', now() - interval '9 h'),
        now() - interval '9 h', now() - interval '8 h 30 min', now() - interval '8 h 28 min', '10 min', 1),
       ('worker/whisper', 'worker', null, 'No worker listens to whisper', '14 wait',
        '{"state": "none", "queue": "whisper", "waiting": 14}',
        now() - interval '9 h', now() - interval '8 h 40 min', now() - interval '8 h 29 min', '10 min', 0)
"""


def _past(connection: psycopg.Connection[Any]) -> None:
    connection.execute(PAST)


def as_json(what: Believable) -> str:
    """How many rows of each table, for messages."""
    return json.dumps({table: len(rows) for table, rows in what.rows.items()})
