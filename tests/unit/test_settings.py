"""Settings: exact names, one message for all problems, no secret shown."""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import reference, settings
from app.settings import (
    GROUPS,
    Broker,
    Database,
    Settings,
    SettingsError,
    key_role,
    load,
    load_group,
    loading,
    read,
    variable,
)
from app.settings.database import address_is_clear
from tests.support.servers import ROOT

GOOD = {"DATABASE_URL": "postgresql://me:hunter2@db/toban", "S3_BUCKET_NAME": "watchme-vault"}


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An environment without any setting of ours."""
    for group in GROUPS.values():
        for field in group.model_fields:
            monkeypatch.delenv(variable(group, field), raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("TOBAN_ENV_FILE", os.devnull)
    loading._own.cache_clear()
    yield monkeypatch
    loading._own.cache_clear()


def loaded(env: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in {**GOOD, **values}.items():
        env.setenv(name, value)
    return load()


def problems(env: pytest.MonkeyPatch, **values: str) -> dict[str, str]:
    with pytest.raises(SettingsError) as caught:
        loaded(env, **values)
    return {problem.code: problem.setting for problem in caught.value.problems}


def jwt_of(role: str) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"role": role}).encode()).decode().rstrip("=")
    return f"e30.{claims}.c2ln"


def test_names_of_the_existing_env_files_are_read(env: pytest.MonkeyPatch) -> None:
    own = loaded(
        env,
        AWS_ACCESS_KEY_ID="AKIA",
        AWS_SECRET_ACCESS_KEY="s3cr3t",
        AWS_REGION="ap-northeast-3",
        DEVICE_TIMEZONE="Europe/Berlin",
        WHISPER_MODEL="small",
        REDIS_URL="redis://r:6379/1",
        TOBAN_LEASE="90",
        LOG_LEVEL="DEBUG",
    )
    assert own.audio.s3_bucket_name == "watchme-vault"
    assert (own.audio.aws_region, own.audio.device_timezone) == ("ap-northeast-3", "Europe/Berlin")
    assert own.whisper.model == "small"
    assert own.broker.backend_url() == "redis://r:6379/1"
    assert own.ledger.lease == timedelta(seconds=90)
    assert own.log.level == "DEBUG"


def test_every_problem_is_told_at_once(env: pytest.MonkeyPatch) -> None:
    found = problems(
        env,
        DATABASE_URL="mysql://x",
        CELERY_BROKER_URL="http://x",
        AUDIO_FOLDER="/nowhere/at/all",
        DEVICE_TIMEZONE="Tokyo",
        WHISPER_BEAM_SIZE="lots",
        TOBAN_LEASE="20",
    )
    assert found == {
        "E010": "DATABASE_URL",
        "E005": "CELERY_BROKER_URL",
        "E001": "WHISPER_BEAM_SIZE",
        "E009": "TOBAN_LEASE",
    }


def test_nothing_set(env: pytest.MonkeyPatch) -> None:
    assert problems(env, DATABASE_URL="", S3_BUCKET_NAME="") == {"E002": "DATABASE_URL", "E006": "S3_BUCKET_NAME"}


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"SUPABASE_KEY": jwt_of("anon")}, "E004"),
        ({"SUPABASE_SERVICE_ROLE_KEY": "sb_publishable_abc"}, "E004"),
        ({}, "E003"),
        ({"SUPABASE_URL": "project", "SUPABASE_KEY": jwt_of("service_role")}, "E011"),
        ({"SUPABASE_KEY": jwt_of("service_role"), "AWS_ACCESS_KEY_ID": "AKIA"}, "E008"),
        ({"SUPABASE_KEY": jwt_of("service_role"), "AUDIO_FOLDER": "/nowhere/at/all"}, "E007"),
    ],
)
def test_supabase_and_audio(env: pytest.MonkeyPatch, values: dict[str, str], code: str) -> None:
    assert code in problems(env, DATABASE_URL="", **{"SUPABASE_URL": "https://p.supabase.co", **values})


@pytest.mark.parametrize(
    "values",
    [
        {"S3_BUCKET_NAME": ""},
        {"S3_BUCKET_NAME": "", "AUDIO_FOLDER": "/nowhere/at/all"},
        {"AWS_ACCESS_KEY_ID": "AKIA"},
    ],
)
def test_who_reads_no_recordings_needs_no_source_of_them(env: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in {**GOOD, **values, "DEVICE_TIMEZONE": "Europe/Berlin"}.items():
        env.setenv(name, value)
    assert load(audio=False).audio.device_timezone == "Europe/Berlin"
    assert load(audio=False) is load(audio=False)
    with pytest.raises(SettingsError, match="1 problem"):
        load()
    env.setenv("TOBAN_LEASE", "1")
    with pytest.raises(SettingsError, match=r"(?s)1 problem.*E009"):
        read(audio=False)
    env.setenv("DEVICE_TIMEZONE", "Tokyo")
    with pytest.raises(SettingsError, match="DEVICE_TIMEZONE"):
        read(audio=False)


def test_the_settings_are_read_once(env: pytest.MonkeyPatch) -> None:
    first = loaded(env)
    env.setenv("S3_BUCKET_NAME", "another")
    assert load() is first
    assert load(audio=False) is first
    assert read().audio.s3_bucket_name == "another"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:Pass@Word@127.0.0.1:5432/x",
        "postgresql://me:Pass/Word@127.0.0.1:5432/x",
        "postgresql://me:12/34Word@127.0.0.1:5432/x",
        "postgresql://me:Pass%Word@127.0.0.1/x",
        "postgresql://me:Pass Word@127.0.0.1/x",
        "postgresql://me:p@127.0.0.1:Word/x",
        "postgresql://me:p@127.0.0.1:99999/x?application_name=Word",
        "me:Word@127.0.0.1",
    ],
)
def test_an_address_that_may_mean_another_is_refused_unseen(env: pytest.MonkeyPatch, url: str) -> None:
    env.setenv("DATABASE_URL", url)
    with pytest.raises(SettingsError, match="E010") as told:
        load_group(Database)
    assert "Word" not in str(told.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://postgres@/toban?host=/tmp/some/run",
        "postgresql://postgres@/toban?host=%2Ftmp%2Fsome",
        "postgres://me:Pass%40W%2Frd@db.example.com:6543/postgres?sslmode=require",
        "postgresql://me:p@h1:5432,h2:5433/x",
        "postgresql://me@[::1]:5432/x",
        "postgresql:///x",
    ],
)
def test_a_clear_address_is_taken(env: pytest.MonkeyPatch, url: str) -> None:
    env.setenv("DATABASE_URL", url)
    assert load_group(Database).database_url


@given(st.text(st.characters(min_codepoint=32, blacklist_categories=["Cs"]), min_size=1))
def test_no_password_changes_what_the_address_means(password: str) -> None:
    from psycopg.conninfo import conninfo_to_dict

    url = f"postgresql://me:{password}@127.0.0.1:5432/x"
    if address_is_clear(url):
        parts = conninfo_to_dict(url)
        assert (parts["host"], parts["port"], parts["dbname"]) == ("127.0.0.1", "5432", "x")
        assert parts["password"] == unquote(password)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"CELERY_BROKER_URL": "redis://:pa/Word@h:6379/0"}, "E012"),
        ({"CELERY_BROKER_URL": "redis://:pa#Word@h:6379/0"}, "E012"),
        ({"CELERY_BROKER_URL": "redis://:12#Word@h:6379/0"}, "E012"),
        ({"CELERY_BROKER_URL": "amqp://u:a;Word@h//"}, "E012"),
        ({"CELERY_RESULT_BACKEND": "redis://:pa/Word@h:6379/0"}, "E012"),
        ({"CELERY_BROKER_URL": "u:Word@h"}, "E005"),
    ],
)
def test_a_brokers_address_too(env: pytest.MonkeyPatch, values: dict[str, str], code: str) -> None:
    with pytest.raises(SettingsError, match=code) as told:
        loaded(env, **values)
    assert "Word" not in str(told.value)
    for url in ("sentinel://:p@h1:1;sentinel://h2:2", "amqp://u:p@h//", "redis+socket:///tmp/a@b", "redis://:p%2F@h"):
        env.setenv("CELERY_BROKER_URL", url)
        env.delenv("CELERY_RESULT_BACKEND", raising=False)
        assert load_group(Broker).url.get_secret_value() == url


def test_the_role_of_a_key() -> None:
    assert key_role(jwt_of("anon")) == "anon"
    assert key_role(jwt_of("service_role")) == "service_role"
    assert key_role("sb_secret_x") == "service_role"
    assert key_role("sb_publishable_x") == "anon"
    assert [key_role(key) for key in ("", "a.b.c", "a.W10.c", "no key")] == ["unknown"] * 4


def test_secrets_are_never_shown(env: pytest.MonkeyPatch) -> None:
    secrets = {
        "AWS_ACCESS_KEY_ID": "AKIA",
        "AWS_SECRET_ACCESS_KEY": "s3cr3t-aws",
        "SUPABASE_SERVICE_ROLE_KEY": "s3cr3t-role",
        "SUPABASE_KEY": "s3cr3t-key",
        "CELERY_BROKER_URL": "redis://:s3cr3t-redis@h/0",
    }
    own = loaded(env, DATABASE_URL="postgresql://me:s3cr3t-db@h/x", **secrets)
    for shown in (repr(own), str(own), repr(own.model_dump())):
        assert "s3cr3t" not in shown
    env.setenv("TOBAN_LEASE", "1")
    env.setenv("DATABASE_URL", "mysql://me:s3cr3t-db@h/x")
    with pytest.raises(SettingsError) as caught:
        read()
    assert "s3cr3t" not in str(caught.value)


def test_an_env_file(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("WHISPER_MODEL=tiny\nS3_BUCKET_NAME=from-file\nUNKNOWN=1\n", encoding="utf-8")
    env.setenv("TOBAN_ENV_FILE", str(file))
    own = loaded(env)
    assert own.whisper.model == "tiny"
    assert own.audio.s3_bucket_name == "watchme-vault", "the environment wins"


@pytest.mark.parametrize("path", reference.FILES)
def test_the_reference_is_up_to_date(path: str) -> None:
    """After a change of the settings: python -m app.reference."""
    assert (ROOT / path).read_text(encoding="utf-8") == reference.FILES[path]()


def test_the_api_is_closed_by_default(env: pytest.MonkeyPatch) -> None:
    web = loaded(env).web
    assert (web.ports, web.anonymous, web.origins) == ([8000], [], [])


def test_the_settings_of_the_api(env: pytest.MonkeyPatch) -> None:
    web = loaded(
        env,
        WEB_EXTRA_PORTS="8001, 8002,8000",
        ROOT_PATH="/vibe-transcriber/",
        LEGACY_ANONYMOUS_CIDRS="172.18.0.0/16, ::1",
        CORS_ORIGINS="https://app.example.com,http://localhost:3000",
    ).web
    assert web.ports == [8000, 8001, 8002]
    assert web.root_path == "/vibe-transcriber"
    assert [str(network) for network in web.anonymous] == ["172.18.0.0/16", "::1/128"]
    assert web.origins == ["https://app.example.com", "http://localhost:3000"]


@pytest.mark.parametrize(
    ("code", "setting", "values"),
    [
        ("E050", "WEB_EXTRA_PORTS", ["80a", "0", "65536", "8001 8002", "٨٠٠١", "-1"]),
        ("E051", "LEGACY_ANONYMOUS_CIDRS", ["10.0.0.1/8", "0.0.0.0/0", "::/0", "x", "*", "::ffff:10.0.0.0/104"]),
        (
            "E052",
            "CORS_ORIGINS",
            ["*", "null", "https://*.example.com", "app.example.com", "https://app.example.com/", "https://a@b.com",
             "https://app.example.com:443", "HTTPS://app.example.com", "ftp://x", "https://x:port"],
        ),
    ],
)  # fmt: skip
def test_what_would_open_the_api_by_mistake(
    env: pytest.MonkeyPatch, code: str, setting: str, values: list[str]
) -> None:
    for value in values:
        assert problems(env, **{setting: f"{value}"}) == {code: setting}, value


def test_every_problem_code_is_explained() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in Path(settings.__file__).parent.glob("*.py"))
    assert set(re.findall(r'"(E\d{3})"', source)) == reference.CODES.keys()


def test_importing_the_app_is_light() -> None:
    """Nothing connects, no task and no heavy library is loaded, and no setting is needed."""
    heavy = "torch ctranslate2 boto3 supabase openai google psycopg numpy av tasks"
    code = f"import sys, app.celery; print([name for name in '{heavy}'.split() if name in sys.modules])"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TOBAN_ENV_FILE": os.devnull}
    answer = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("url", "kind"), [("redis://h", "classic"), ("amqp://u:p@h//", "quorum"), ("amqps://u:p@h//", "quorum")]
)
def test_only_rabbitmq_has_types_of_queues(env: pytest.MonkeyPatch, url: str, kind: str) -> None:
    env.setenv("CELERY_BROKER_URL", url)
    env.setenv("RABBITMQ_QUEUE_TYPE", "quorum")
    assert load_group(Broker).queue_type() == kind
