"""The ledger over a direct PostgreSQL connection (psycopg 3)."""

from contextlib import AbstractContextManager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool, PoolTimeout

from app import tracing
from app.database.core import from_sqlstate, refuse_nul
from app.errors import Transient

DEADLINE = """
select split_part(setting, '=', 2) from pg_catalog.pg_proc p, unnest(p.proconfig) setting
where p.pronamespace = 'public'::regnamespace and p.proname = %s and setting like 'statement_timeout=%%'
"""

# How every connection is made.
CONNECTION: dict[str, Any] = {
    "autocommit": True,
    # A pooler (PgBouncer, Supavisor) gives each transaction another server connection, which would not know a statement
    # prepared on the last one.
    "prepare_threshold": None,
    "connect_timeout": 10,
    # A network that swallows packets is noticed within 30 s.
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # ms
}


class PostgresDatabase:
    """A small pool, opened at the first call. Works behind a transaction pooler too.

    `dsn`: libpq connection string; `pool_size`: most connections at once; 0: connect anew for each call;
    `patience`: how long a call waits for a connection, seconds.
    """

    def __init__(self, dsn: str, pool_size: int = 4, patience: float = 15) -> None:
        self._dsn = dsn
        self._patience = patience
        self._options: dict[str, Any] = {**CONNECTION, "application_name": "toban"}
        if not pool_size:
            self._options["connect_timeout"] = 3  # a parent whose children wait has no more time
        self._deadlines: dict[str, str] = {}
        self._pool = (
            ConnectionPool(
                dsn,
                min_size=0,
                max_size=pool_size,
                open=False,
                timeout=patience,
                # Given up as soon, so that the next call tries at once: the pauses between a pool's own tries double,
                # and would keep it away for minutes after a server is back.
                reconnect_timeout=patience,
                max_idle=60,
                kwargs=self._options,
                check=ConnectionPool.check_connection,
            )
            if pool_size
            else None
        )

    def _connection(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        if self._pool is None:
            return psycopg.connect(self._dsn, **self._options)
        self._pool.open()
        return self._pool.connection()

    def call(self, function: str, **params: object) -> Any:  # noqa: ANN401 - see Database
        refuse_nul(params, function)
        statement = sql.SQL("select public.{}(%s)").format(sql.Identifier(function))
        try:
            with tracing.outside(function, tracing.DATABASE), self._connection() as connection:
                deadline = self._deadline(connection, function)
                # One trip: the statements are sent together.
                with connection.pipeline(), connection.transaction():
                    connection.execute("select set_config('statement_timeout', %s, true)", [deadline])
                    if context := tracing.traceparent():
                        connection.execute("select set_config('toban.trace', %s, true)", [context])
                    row = connection.execute(statement, [Jsonb(params)]).fetchone()
        except PoolTimeout:
            raise Transient(f"no database connection within {self._patience:g} s; is the server up?") from None
        except psycopg.Error as error:
            if error.sqlstate is None:  # the connection broke or never came up
                raise Transient(f"{function}: {str(error).strip() or type(error).__name__}") from error
            raise from_sqlstate(error.sqlstate, error.diag.message_primary or str(error), function) from error
        return row[0] if row else None

    def _deadline(self, connection: psycopg.Connection[Any], function: str) -> str:
        """The function's own `statement_timeout`.

        PostgreSQL starts a statement's clock before it enters the function, so over a direct connection that setting
        has to be made first; PostgREST does the same.
        """
        if function not in self._deadlines:
            found = connection.execute(DEADLINE, [function]).fetchone()
            self._deadlines[function] = str(found[0]) if found else "30s"
        return self._deadlines[function]

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
