"""A database that is away for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from tests.support.servers import Postgres
from tests.support.web import Site


@contextmanager
def away(postgres: Postgres, site: Site) -> Iterator[None]:
    """Nobody gets into the site's database, and whoever is in is thrown out."""
    url = site.services.settings.database.database_url
    assert url
    name = psycopg.conninfo.conninfo_to_dict(url.get_secret_value())["dbname"]
    allow = sql.SQL("alter database {} allow_connections {}")
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(allow.format(sql.Identifier(str(name)), sql.SQL("false")))
        connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name])
        try:
            yield
        finally:
            connection.execute(allow.format(sql.Identifier(str(name)), sql.SQL("true")))
