"""What happens often has to be cheap."""

import psycopg

from app.database.postgres import PostgresDatabase
from bench.scale import TABLE, Fleet, updates


def test_a_heartbeat_writes_no_index(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(TABLE)
        connection.execute("insert into chores (id, owner) select n, 'me' from generate_series(1, 20) n")
        database = PostgresDatabase(database_url, pool_size=1)
        try:
            fleet = Fleet(database, 3)
            before = updates(connection, "work_items")
            for number in range(30):
                fleet.beat(number % 3)
        finally:
            database.close()  # what it counted is told when it ends
        after = updates(connection, "work_items")
    assert after["updates"] - before["updates"] >= 30
    assert after["updates"] - after["hot"] <= 20 + 6 + 3, "only claims and starts write them"
