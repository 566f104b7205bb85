"""The database behind the ledger: `open_database()` picks the transport that the settings name."""

from app.database.core import Database
from app.settings import Database as DatabaseSettings


def open_database(settings: DatabaseSettings, *, shared: bool = True, patience: float = 15) -> Database:
    """The transport of `settings`; nothing connects before its first call.

    `shared`: keep connections open for the next call, looked after by threads of their own. False: connect for each
    call, which is what a process that forks may do. `patience`: how long a call waits for a connection, seconds.
    """
    if settings.database_url is not None:
        from app.database.postgres import PostgresDatabase

        size = settings.database_pool_size if shared else 0
        return PostgresDatabase(settings.database_url.get_secret_value(), size, patience)
    from app.database.supabase import SupabaseDatabase

    key = settings.rest_key()
    if settings.supabase_url is None or key is None:
        raise ValueError("no database is set")  # load() has refused such settings
    return SupabaseDatabase(settings.supabase_url, key.get_secret_value())


__all__ = ["Database", "open_database"]
