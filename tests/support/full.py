"""A database in which everything that is counted has happened at least once."""

import psycopg

EVERYTHING = """
insert into audio_files values ('d1', '2025-07-18T03:00:00Z', 'a.wav', 'pending'),
  ('d1', '2025-07-18T03:30:00Z', 'a.wav', 'pending'), ('d1', '2025-07-18T04:00:00Z', 'a.wav', 'pending');
insert into workers (id, node, queues, slots, busy, rss_bytes, memory_limit, expires_at) values
  ('w1', 'whisper@host/12', '{whisper}', 1, 1, 100, 200, now() + interval '1 h'),
  ('w2', 'whisper@host/12', '{whisper}', 1, 0, 100, 200, now() + interval '1 h'),
  ('w3', 'default@host/13', '{default,gpt}', 8, 0, 50, null, now() + interval '1 h');
insert into metric_events values ('attempt', '{transcription,completed,""}', '{3,20}'),
  ('attempt', '{transcription,retry,transient}', '{400,null}'),
  ('call', '{gpt-4.1-mini,ok,direct}', '{100,40,20,0.25}'), ('speech', '{base,faster-whisper}', '{1800,90}');
insert into llm_days values (current_date - 1, 1, 0.25), (current_date, 1, 0.25), (current_date + 1, 1, 0.25);
insert into jobs (job, title, source, every, last_started_at, last_finished_at, last_status) values
  ('transcription', 'T', 'transcription', '10 s', now() - interval '5 s', now() - interval '3 s', 'success');
insert into job_status (job_key, title, last_status, last_finished_at) values ('backup', 'B', 'error', now());
insert into beats values ('b', 'host', 1);
insert into monitor_state (ran_at) values (now());
insert into incidents (fingerprint, kind, title, opened_at, last_at, settle)
  values ('beat', 'beat', 'No beat ticks', now(), now(), '1 min');
insert into queue_holds (queue, cause, reason, since, until, incident)
  values ('gpt', 'budget', 'spent', now(), now() + interval '1 h', true);
"""


def fill(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(EVERYTHING)
