"""The ledger over both transports. The database is shared and emptied before each test."""

from collections.abc import Iterator

import psycopg
import pytest

from app.database import Database
from app.database.postgres import PostgresDatabase
from app.database.supabase import SupabaseDatabase
from tests.support.ledger import Ledger
from tests.support.servers import PostgREST, key_of

# Tables that a test has made go; what it has watched is forgotten; everything else is emptied.
CLEAN = """
do $$
declare
  v_name text;
begin
  for v_name in select format('drop table public.%I cascade', c.relname) from pg_class c
      where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and c.relname like 'toy%' loop
    execute v_name;
  end loop;
  for v_name in select format('drop function %s cascade', p.oid::regprocedure) from pg_proc p
      where p.proname like 'toban\\_on\\_toy%' loop
    execute v_name;
  end loop;
end
$$;
delete from public.toban_sources where source like 'toy%';
truncate public.work_items, public.runs, public.run_results, public.jobs, public.workers, public.audio_files,
  public.vibe_whisper, public.transcripts, public.job_status, public.dashboard, public.prompted_blocks,
  public.queue_holds, public.llm_calls, public.llm_days, public.llm_batches, public.llm_batch_items,
  public.batch_requests, public.batch_request_items
  restart identity cascade;
truncate public.job_watch, public.job_reports, public.beats, public.queue_watch, public.incidents, public.alerts,
  public.alert_channels, public.audit_log, public.monitor_state, public.source_modes, public.shadow_rows,
  public.work_collisions restart identity cascade;
truncate public.metric_events, public.metric_counts, public.metric_snapshot;
truncate public.analysis_requests;
truncate public.web_users, public.web_sessions, public.web_links, public.web_keys, public.web_tries, public.web_secrets;
"""

UUIDS = """
alter table dashboard alter device_id type uuid using device_id::uuid;
select toban_watch('dashboard', 'analysis', array['device_id', 'date', 'time_block'], 'status', p_date => 'date',
  p_block => 'time_block', p_due => 'r.prompt is not null', p_inputs => array['prompt'],
  p_store => 'public.toban_store_analysis')
"""


@pytest.fixture
def clean_url(shared_database_url: str) -> str:
    """The shared database, empty."""
    with psycopg.connect(shared_database_url, autocommit=True) as connection:
        connection.execute(CLEAN)
    return shared_database_url


@pytest.fixture(params=["postgres", "supabase"])
def db(request: pytest.FixtureRequest, clean_url: str) -> Iterator[Database]:
    """Both transports, one after the other."""
    database: Database
    if request.param == "postgres":
        database = PostgresDatabase(clean_url, pool_size=10)
    else:
        server: PostgREST = request.getfixturevalue("postgrest")
        database = SupabaseDatabase(server.url, key_of("service_role"), rest_url=server.url)
    yield database
    database.close()


@pytest.fixture
def ledger(db: Database, clean_url: str) -> Iterator[Ledger]:
    helper = Ledger(db, clean_url)
    yield helper
    helper.close()


@pytest.fixture
def uuids(ledger: Ledger) -> Iterator[None]:
    """The app's own dashboard, whose devices are uuids."""
    with ledger.altered(UUIDS, UUIDS.replace("type uuid", "type text").replace("::uuid", "::text")):
        yield
        ledger.sql("truncate dashboard")


@pytest.fixture
def direct_ledger(clean_url: str) -> Iterator[Ledger]:
    """For what has nothing to do with the transport."""
    database = PostgresDatabase(clean_url, pool_size=10)
    helper = Ledger(database, clean_url)
    yield helper
    helper.close()
    database.close()
