"""The command `toban`. What a command does is in the module of its name; this one only reads the command line."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="toban",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _version(asked: bool) -> None:  # noqa: FBT001 - typer's
    if asked:
        from app.tracing import program

        typer.echo(f"toban {program()}")
        raise typer.Exit


@app.callback()
def toban(
    *,
    _: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Every waiting database row becomes exactly one task. `toban demo` shows it on this machine."""


Device = Annotated[str, typer.Option("--device", help="The device's id.", metavar="ID")]


@app.command()
def up() -> None:
    """Run everything on this machine until Ctrl-C; the data stays in `.toban/`.

    What the environment or `.env` sets is used; local stand-ins fill the gaps.
    """
    from app.cli.up import up

    up(Path(".toban"))


@app.command()
def demo(
    audio: Annotated[
        Path | None,
        typer.Option(envvar="AUDIO", help="Your own recordings instead of the ones that come along.", metavar="FOLDER"),
    ] = None,
) -> None:
    """Watch real speech go from a waiting row to a stored transcript, then leave no trace."""
    from app.cli.demo import demo

    demo(audio)


@app.command()
def migrate() -> None:
    """Bring the database's schema up to this program (DATABASE_URL)."""
    from app.cli.migrate import migrate

    migrate()


@app.command()
def add(
    path: Annotated[Path, typer.Argument(help="A recording, or a folder of recordings.", metavar="FOLDER|FILE")],
    device: Device,
    at: Annotated[
        str | None,
        typer.Option(
            help="When one recording was made, as 2025-07-18T12:30 (in DEVICE_TIMEZONE) or with an offset. "
            "Default: what the file's name says, else when it was last changed.",
            metavar="TIME",
        ),
    ] = None,
) -> None:
    """Put recordings in: copy or upload the files, and insert their waiting rows."""
    from app.cli.add import add

    add(path, device, at)


@app.command()
def status(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it until Ctrl-C.")] = False,
) -> None:
    """Show what waits, what runs, who works, and what failed."""
    from app.cli.status import status

    status(as_json=as_json, watch=watch)


@app.command()
def reprocess(
    *,
    source: Annotated[str, typer.Argument(help="The source, such as `transcription`.")],
    device: Annotated[str | None, typer.Option(help="Rows of this device.", metavar="ID")] = None,
    date: Annotated[str | None, typer.Option(help="Rows of this day.", metavar="YYYY-MM-DD")] = None,
    time_block: Annotated[str | None, typer.Option(help="Of that day, this half hour.", metavar="HH-MM")] = None,
    key: Annotated[list[str] | None, typer.Option(help="This row; may be given often.", metavar="KEY")] = None,
    only_failed: Annotated[bool, typer.Option("--only-failed", help="Only what has failed.")] = False,
    model: Annotated[
        str | None, typer.Option(help="The model to use this time: the workers' WHISPER_MODEL.", metavar="NAME")
    ] = None,
) -> None:
    """Make rows wait again, as `celery -A app call tasks.reprocess` does."""
    from app.cli.reprocess import reprocess

    reprocess(
        source=source, device_id=device, date=date, time_block=time_block, key=key, only_failed=only_failed, model=model
    )


shadow = typer.Typer(name="shadow", help="Sources that only follow another system.", no_args_is_help=True)
app.add_typer(shadow)

SourceName = Annotated[str, typer.Argument(help="The source, such as `transcription`.", metavar="SOURCE")]


@shadow.command("report")
def shadow_report(
    *,
    source: Annotated[str | None, typer.Argument(help="One source; default: all.", metavar="[SOURCE]")] = None,
    device: Annotated[str | None, typer.Option(help="Rows of this device.", metavar="ID")] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="Rows that the other system completed since then: 2025-07-18, 2025-07-18T12:00 (in DEVICE_TIMEZONE), "
            "or 24h ago.",
            metavar="TIME",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(help="Differences to list, the latest first.", min=0, max=10_000)] = 20,
    show_text: Annotated[bool, typer.Option("--show-text", help="With both results: what people have said.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show how far Toban agrees with the other system, and how long both took."""
    from app.cli.shadow import report

    report(source, device=device, since=since, limit=limit, show_text=show_text, as_json=as_json)


@app.command()
def takeover(
    *,
    source: SourceName,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the checks, and change nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Although a check fails.")] = False,
) -> None:
    """Turn a source from shadow to live: Toban takes its waiting rows from the next tick on."""
    from app.cli.takeover import takeover

    takeover(source, dry_run=dry_run, force=force)


@app.command()
def rollback(
    *,
    source: SourceName,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would happen, and change nothing.")] = False,
    now: Annotated[
        bool, typer.Option("--now", help="Give back what runs now too, instead of letting it finish.")
    ] = False,
) -> None:
    """Turn a source back to shadow: its rows wait for the other system."""
    from app.cli.takeover import rollback

    rollback(source, dry_run=dry_run, now=now)


jobs = typer.Typer(
    name="jobs", help="The jobs of the timetable, and what is set for them.", invoke_without_command=True
)
app.add_typer(jobs)


@jobs.callback()
def list_jobs(
    context: typer.Context, *, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
) -> None:
    """Show every job: when it runs, which rows it takes, and how its last run went."""
    if context.invoked_subcommand is not None:
        return
    from app.cli.jobs import list_jobs

    list_jobs(as_json=as_json)


@jobs.command("set")
def set_job(
    *,
    job: Annotated[str, typer.Argument(help="The job, as `toban jobs` shows it.", metavar="JOB")],
    enabled: Annotated[bool | None, typer.Option("--resume/--pause", help="Let it run again, or not.")] = None,
    every: Annotated[
        str | None, typer.Option(help="How often a slot begins, as 90s, 10m, 1h30m or 1d.", metavar="TIME")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(help="How far into it: every 1h at 10m is at :10, every 1d at 3h at 03:00.", metavar="TIME"),
    ] = None,
    zone: Annotated[str | None, typer.Option(help="Whose clock that is, as Asia/Tokyo.", metavar="ZONE")] = None,
    batch_limit: Annotated[
        str | None,
        typer.Option(help="Most rows that are sent in one slot; none: as many as can run.", metavar="N|none"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Only rows of this device; none: of all.", metavar="ID|none")
    ] = None,
    date: Annotated[
        str | None,
        typer.Option(
            help="Only rows of this day, in DEVICE_TIMEZONE; any: of all.", metavar="today|yesterday|YYYY-MM-DD|any"
        ),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(help="The longest that one call for a row may take; none: the default.", metavar="SECONDS|none"),
    ] = None,
) -> None:
    """Change a job; what is not named stays. It holds from the next tick on, without a restart."""
    from app.cli.jobs import set_job

    set_job(
        job, enabled=enabled, every=every, at=at, zone=zone, batch_limit=batch_limit, device=device, date=date,
        timeout=timeout,
    )  # fmt: skip


@app.command("import-config")
def import_config(
    *,
    path: Annotated[Path, typer.Argument(help="The old switchboard.", metavar="config.json")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
) -> None:
    """Take over the old switchboard's settings: enabled, timeout, batchLimit, deviceId, processDate."""
    from app.cli.import_config import import_config

    import_config(path, dry_run=dry_run)


@app.command()
def doctor(
    speech: Annotated[
        Path | None, typer.Option(help="Also transcribe this recording, and show the words.", metavar="FILE")
    ] = None,
) -> None:
    """Check every setting, server, queue and known trap, each with its remedy."""
    from app.cli.doctor import doctor

    doctor(speech)


@app.command()
def tune(
    *,
    file: Annotated[
        Path | None,
        typer.Argument(help="A recording like yours; default: the ones that come along.", metavar="[FILE]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Take back what was found before.")] = False,
) -> None:
    """Measure how many children, threads and chunks at once hear most here, for workers to use (minutes)."""
    from app.cli.tune import forget as forget_it
    from app.cli.tune import tune

    if forget:
        forget_it()
    else:
        tune(file, as_json=as_json)


@app.command()
def spending(*, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show what the calls to language models came to, and what the budgets leave."""
    from app.cli.spending import spending

    spending(as_json=as_json)


@app.command()
def retention(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Forget what is old enough (TOBAN_KEEP_…, RETENTION_…), as the job of that name does every night."""
    from app.cli.retention import retention

    retention(dry_run=dry_run, as_json=as_json)


@app.command()
def erase(
    *,
    device: Device,
    since: Annotated[
        str | None, typer.Option("--from", help="Only from this day on, in DEVICE_TIMEZONE.", metavar="YYYY-MM-DD")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="Only up to this day.", metavar="YYYY-MM-DD")] = None,
    audio: Annotated[bool, typer.Option("--audio", help="Also its recordings in the bucket or folder.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this, only show what there is.")] = False,
    who: Annotated[
        str | None, typer.Option(help="Who asked, for the receipt; default: this user.", metavar="NAME")
    ] = None,
    receipt: Annotated[
        Path | None,
        typer.Option(help="Where the receipt goes; default: toban-erasure-….json here.", metavar="FILE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Erase everything of a device, and write a receipt. It can't be undone; nothing happens without `--yes`."""
    from app.cli.erase import erase

    erase(device, since, until, audio=audio, yes=yes, who=who, receipt=receipt, as_json=as_json)


@app.command(context_settings={"allow_interspersed_args": False})
def wrap(
    *,
    command: Annotated[list[str], typer.Argument(help="What to run.", metavar="-- COMMAND …", show_default=False)],
    key: Annotated[str | None, typer.Option(help="The job's key; default: TC_PORTAL_JOB_KEY.")] = None,
    title: Annotated[str | None, typer.Option(help="Default: TC_PORTAL_JOB_TITLE, else the key.")] = None,
    every: Annotated[str | None, typer.Option(help="How often it is expected: 90s, 15m, 24h, 1d.")] = None,
    grace: Annotated[str | None, typer.Option(help="How late it may be.")] = None,
    fail_after: Annotated[int | None, typer.Option(help="Failures in a row that make an incident.", min=1)] = None,
    no_log: Annotated[bool, typer.Option("--no-log", help="Do not send the output's last lines.")] = False,
) -> None:
    """Run a command and report how it ended (TC_PORTAL_MONITOR_URL, TC_PORTAL_WEBHOOK_SECRET).

    Output, exit code and signals go through; trouble with the report never breaks the command.
    """
    from app.cli.wrap import wrap

    wrap(
        command,
        key=key,
        title=title,
        expectations={"expect_every": every, "grace": grace, "fail_after": fail_after},
        send_log=not no_log,
    )


alerts = typer.Typer(name="alerts", help="Who is told of incidents.", no_args_is_help=True)
app.add_typer(alerts)


@alerts.command("test")
def test_alerts() -> None:
    """Send a test message to every channel of ALERT_URLS; exit code 1 if one fails."""
    from app.cli.alerts import test

    test()


@app.command()
def web(
    *,
    host: Annotated[str | None, typer.Option(help="The address to listen on; default: WEB_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="The port; default: WEB_PORT.", min=1, max=65535)] = None,
    link: Annotated[bool, typer.Option(help="Print a one-time link to the first account while there is none.")] = True,
) -> None:
    """Show incidents, jobs and work in a browser."""
    from app.cli.web import web

    web(host, port, link=link)


class HealthOf(StrEnum):
    WORKER = "worker"
    BEAT = "beat"
    WEB = "web"


@app.command()
def health(
    *,
    what: Annotated[
        HealthOf | None,
        typer.Argument(
            help="A process of this machine or container; default: everything.", metavar="[worker|beat|web]"
        ),
    ] = None,
    queue: Annotated[str | None, typer.Option(help="worker: one that listens to this queue.", metavar="QUEUE")] = None,
) -> None:
    """Say in a sentence whether it is well; exit code 1 if not. Made for health checks."""
    from app.cli.health import health

    health(what.value if what else None, queue)


users = typer.Typer(name="user", help="Who may sign in to the web pages.", no_args_is_help=True)
app.add_typer(users)
keys = typer.Typer(name="key", help="What programs sign in with.", no_args_is_help=True)
app.add_typer(keys)


class UserRole(StrEnum):
    VIEWER = "viewer"
    OPERATOR = "operator"


UserName = Annotated[str, typer.Argument(metavar="NAME")]
WhichRole = Annotated[
    UserRole, typer.Option("--role", help="viewer: sees everything; operator: may also press buttons.")
]


@users.command("add")
def add_user(name: UserName, role: WhichRole = UserRole.VIEWER) -> None:
    """Make an account. The password is asked for, or read from a pipe."""
    from app.cli.accounts import add_user

    add_user(name, role.value)


@users.command("list")
def list_users() -> None:
    """Show the accounts."""
    from app.cli.accounts import list_users

    list_users()


@users.command("rm")
def remove_user(name: UserName) -> None:
    """Remove an account; its sessions end."""
    from app.cli.accounts import remove_user

    remove_user(name)


@users.command("password")
def set_password(name: UserName) -> None:
    """Give an account a new password; its sessions end."""
    from app.cli.accounts import set_password

    set_password(name)


@users.command("role")
def set_role(name: UserName, role: WhichRole) -> None:
    """Give an account another role, at once."""
    from app.cli.accounts import set_role

    set_role(name, role.value)


@users.command("link")
def link_user(name: UserName) -> None:
    """Print a one-time link by which somebody sets a new password."""
    from app.cli.accounts import link_user

    link_user(name)


@keys.command("add")
def add_key(
    name: UserName,
    scope: Annotated[
        list[str], typer.Option(help="badge, metrics, read or operate; may be given often.", metavar="SCOPE")
    ],
    days: Annotated[int | None, typer.Option(help="The key ends after so many days; default: never.", min=1)] = None,
) -> None:
    """Make an API key; it is shown once."""
    from app.cli.accounts import add_key

    add_key(name, scope, days)


@keys.command("list")
def list_keys() -> None:
    """Show the keys' names, scopes and last use."""
    from app.cli.accounts import list_keys

    list_keys()


@keys.command("revoke")
def revoke_key(name: UserName) -> None:
    """End a key at once."""
    from app.cli.accounts import revoke_key

    revoke_key(name)


models = typer.Typer(name="models", help="The speech engines' models on this machine.", no_args_is_help=True)
app.add_typer(models)


class SpeechEngine(StrEnum):
    FASTER_WHISPER = "faster-whisper"
    OPENAI_WHISPER = "openai-whisper"


ModelEngine = Annotated[SpeechEngine | None, typer.Option("--engine", help="Default: WHISPER_ENGINE.")]


@models.command("list")
def list_models(*, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show the models that are here, and those that the settings name."""
    from app.cli.models import list_models

    list_models(as_json=as_json)


@models.command()
def pull(
    names: Annotated[
        list[str] | None, typer.Argument(help="Default: the models that the settings name.", metavar="NAME…")
    ] = None,
    engine: ModelEngine = None,
) -> None:
    """Download models, unless they are here and whole."""
    from app.cli.models import pull

    pull(names or [], engine)


@models.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Default: all that are here.", metavar="NAME…")] = None,
    engine: ModelEngine = None,
) -> None:
    """Compare models with their checksums; exit code 1 if one is damaged."""
    from app.cli.models import verify

    verify(names or [], engine)


@models.command()
def rm(
    name: Annotated[str, typer.Argument(help="A downloaded model.", metavar="NAME")],
    engine: ModelEngine = None,
) -> None:
    """Remove a downloaded model."""
    from app.cli.models import remove

    remove(name, engine)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line `arguments` (default: the process's) and exit: 0 done, 1 failed, 2 wrong usage."""
    try:
        app(arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("TOBAN_DEBUG"):
            raise
        from app.cli.errors import told

        typer.echo(told(error), err=True)
        sys.exit(1)
