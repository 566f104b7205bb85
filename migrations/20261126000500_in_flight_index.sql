-- A heartbeat moves the leases of what its worker runs. With the lease in an index each of those updates had to write
-- all the table's indexes; without it none (measured with 1,000 workers: a fifth less to the log, 7 to 20 % less processor
-- time). Whose lease is over is found among the items in flight, of which there are three for each slot at most.
create index if not exists work_items_flying_idx
  on public.work_items (queue, state) where state in ('queued', 'processing');
drop index if exists public.work_items_in_flight_idx;
