"""`toban migrate`."""

import typer

from app.errors import Permanent
from app.settings import Database, load_group


def migrate() -> None:
    from app.database.migrate import migrate

    settings = load_group(Database)
    if settings.database_url is None:
        raise Permanent(
            "the schema is changed over a direct connection, and only SUPABASE_URL is set: either run "
            "`supabase db push` with the files of migrations/ in supabase/migrations/, or set DATABASE_URL to the "
            "project's connection string (Supabase: Connect → Session pooler)"
        )
    applied = migrate(settings.database_url.get_secret_value())
    for name in applied:
        typer.echo(f"applied {name}")
    typer.echo(f"{len(applied)} migrations applied" if applied else "The schema is up to date.")
