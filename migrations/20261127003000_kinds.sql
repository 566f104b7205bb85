-- A dry run names all that goes: keys of requests, messages and workers too.

-- Every kind, with the setting that counts for it, its table (x), what of it is old, and what is done then. $1 is the
-- moment and $2 the devices' day before which something is old, $3 the devices' zone. Without `done` another function
-- (or the rest of toban_retention) does it, and only the count is told here.
create or replace function public.toban_kinds() returns table (kind text, setting text, tab text, old text, done text)
language sql immutable set search_path = '' as $$
  values
    ('segments', 'segments_days', 'public.transcripts',
     'x.date < $2 and x.segments <> ''[]''', 'set segments = ''[]'''),
    ('transcripts', 'transcripts_days', 'public.transcripts', $q$x.date < $2 and not exists (
       select from public.work_items w where w.source = 'transcription' and w.partition = x.device_id
       and w.state in ('pending', 'queued', 'processing') and (w.at at time zone $3)::date = x.date)$q$, 'delete'),
    ('texts', 'transcripts_days', 'public.vibe_whisper', $q$x.date < $2 and not exists (
       select from public.work_items w where w.source = 'transcription' and w.partition = x.device_id::text
       and w.state in ('pending', 'queued', 'processing') and (w.at at time zone $3)::date = x.date)$q$, 'delete'),
    ('prompted_blocks', 'transcripts_days', 'public.prompted_blocks', 'x.date < $2', 'delete'),
    ('compared_texts', 'transcripts_days', 'public.shadow_rows', $q$x.source = 'transcription' and x.status <> 'pending'
       and coalesce((x.at at time zone $3)::date, (x.row ->> 'date')::date) < $2$q$, 'delete'),
    ('compared_prompts', 'prompts_days', 'public.shadow_rows', $q$x.source = 'analysis' and x.status <> 'pending'
       and coalesce((x.at at time zone $3)::date, (x.row ->> 'date')::date) < $2$q$, 'delete'),
    ('parts', 'parts_days', 'public.saved_parts', $q$x.saved_at < $1 and exists (
       select from public.work_items w where w.id = x.item_id and w.state = 'failed')$q$, 'delete'),
    ('prompts', 'prompts_days', 'public.dashboard', $q$x.date < $2 and x.prompt is not null
       and x.status is distinct from 'pending' and not exists (
       select from public.work_items w where w.source = 'analysis' and w.partition = x.device_id::text
       and w.state in ('pending', 'queued', 'processing') and w.ref ->> 'date' = to_char(x.date, 'YYYY-MM-DD'))$q$,
     'set prompt = null'),
    ('results', 'results_days', 'public.dashboard', $q$x.date < $2
       and x.status is distinct from 'pending' and not exists (
       select from public.work_items w where w.source = 'analysis' and w.partition = x.device_id::text
       and w.state in ('pending', 'queued', 'processing') and w.ref ->> 'date' = to_char(x.date, 'YYYY-MM-DD'))$q$,
     'delete'),
    -- (Of an incident the reason stays as long as it is one.)
    ('errors', 'errors_days', 'public.work_items', $q$x.finished_at < $1
       and x.state in ('completed', 'skipped', 'failed')
       and (x.last_traceback is not null or x.last_error is not null and x.incident_since is null)$q$,
     'set last_traceback = null, last_error = case when x.incident_since is not null then x.last_error end'),
    ('attempt_errors', 'errors_days', 'public.work_attempts', 'x.ended_at < $1 and x.error is not null',
     'set error = null'),
    ('job_logs', 'errors_days', 'public.job_watch', 'x.last_finished_at < $1 and x.log_tail is not null',
     'set log_tail = null'),
    ('incident_logs', 'errors_days', 'public.incidents', 'x.recovered_at < $1 and x.log_tail is not null',
     'set log_tail = null'),
    ('items', 'items_days', 'public.work_items',
     'x.state in (''completed'', ''skipped'') and x.marked and x.finished_at < $1', null),
    ('runs', 'runs_days', 'public.runs', 'x.state <> ''running'' and x.started_at < $1', null),
    ('batches', 'batches_days', 'public.batch_requests', $q$x.created_at < $1 and not exists (
       select from public.batch_request_items i join public.work_items w on w.id = i.item_id
       where i.batch_id = x.id and i.state = 'open' and w.state in ('pending', 'queued', 'processing'))$q$, null),
    ('request_keys', 'request_keys_days', 'public.analysis_requests', 'x.created_at < $1', null),
    -- (One without an answer, at which nobody works any more, is lost by then.)
    ('calls', 'calls_days', 'public.llm_calls', $q$x.sent_at < $1 and (x.outcome <> 'sent'
       or x.lane = 'direct' and not exists (select from public.work_items w
         where w.id = x.item_id and w.state = 'processing' and w.attempt = x.attempt))$q$, null),
    -- (Those of an incident that goes go with it.)
    ('messages', 'incidents_days', 'public.alerts', $q$x.created_at < $1
       and coalesce(x.sent_at, x.cancelled_at) is not null and not exists (
       select from public.incidents i where i.id = x.incident_id and i.recovered_at < $1)$q$, null),
    ('incidents', 'incidents_days', 'public.incidents', 'x.recovered_at < $1', null),
    ('reports', 'incidents_days', 'public.job_reports', 'x.reported_at < $1', null),
    ('audit', 'audit_days', 'public.audit_log', 'x.at < $1', null),
    ('workers', 'workers_days', 'public.workers', 'x.expires_at < $1', null)
$$;

-- Forget batches that are old and done, and keys of analyses that are older than a day. p: days (of batches), limit?
-- (default 10000) → forgotten (batches), keys, more
create or replace function public.toban_upkeep_requests(p jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' as $$
declare
  v_limit integer := coalesce((p ->> 'limit')::integer, 10000);
  v_forgotten integer;
  v_keys integer;
begin
  with old as (
    select b.id from public.batch_requests b
    where b.created_at < now() - (p ->> 'days')::numeric * interval '1 day' and not exists (
      select from public.batch_request_items i join public.work_items w on w.id = i.item_id
      where i.batch_id = b.id and i.state = 'open' and w.state in ('pending', 'queued', 'processing'))
    order by b.created_at limit v_limit for update skip locked
  )
  delete from public.batch_requests b using old where b.id = old.id;
  get diagnostics v_forgotten = row_count;
  delete from public.analysis_requests where (owner, idempotency_key) in (
    select owner, idempotency_key from public.analysis_requests where created_at < now() - interval '1 day'
    order by created_at limit v_limit for update skip locked);
  get diagnostics v_keys = row_count;
  return jsonb_build_object('forgotten', v_forgotten, 'keys', v_keys,
                            'more', greatest(v_forgotten, v_keys) >= v_limit);
end
$$;

select public.toban_lock_down();
notify pgrst, 'reload schema';
