"""Rows against a language model's server that misbehaves, and against one that counts: `python -m bench.analysis`.

Two workers of 16 threads, PostgreSQL and Valkey on this machine, and the stand-in for OpenAI of the tests. First 1,000
rows: 10 % of the calls are answered 429, 5 % 500, 5 % never, 3 % with invalid JSON, 2 % with NaN; what is paid for each
row that is completed? Then 600 rows and a server that takes 60 requests in any minute (ten minutes): how many calls
does it refuse? Neither is about speed. Writes `bench/results/analysis.json`; `--quick` does a tenth, writes nothing.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from app.cli.up import stop_like_ctrl_c
from app.database.migrate import migrate
from tests.support.openai_server import KEY, OpenAIServer, serving
from tests.support.servers import Postgres, Redis
from tests.support.system import OPEN, System

FAULTS = {"429": 0.10, "500": 0.05, "hang": 0.05, "invalid_json": 0.03, "nan": 0.02}
THREADS = 16
RESULTS = Path(__file__).parent / "results/analysis.json"
ROWS = """
insert into dashboard (device_id, date, time_block, prompt, status)
select 'device ' || i % 20, date '2025-07-18' + i / 960,
       to_char(time '00:00' + (i / 20) % 48 * interval '30 min', 'HH24-MI'), 'What happened in block ' || i || '?',
       'pending'
from generate_series(0, {} - 1) i
"""


def measured(server: OpenAIServer, rows: int, postgres: Postgres, redis: Redis, **settings: str) -> dict[str, Any]:
    """What becomes of `rows` rows."""
    url = postgres.create(f"analysis_{time.monotonic_ns()}")
    migrate(url)
    redis.flush()
    with (
        serving(server),
        tempfile.TemporaryDirectory(prefix="toban-bench-") as folder,
        System(url, redis, Path(folder), OPENAI_BASE_URL=server.url, OPENAI_API_KEY=KEY, **settings) as system,
    ):
        system.sql(ROWS.format(rows))
        for name in ("one", "two"):
            system.run(name, "-A", "workers.gpt", "worker", "-c", str(THREADS), "-n", f"{name}@%h")
        while not server.calls:
            time.sleep(0.1)
        began, states = time.monotonic(), Counter[str]()
        while OPEN & (states := system.states()).keys():
            print(f"\r{dict(states)} {len(server.calls)} calls", end="", flush=True)
            time.sleep(1)
        seconds = time.monotonic() - began
        print()
        [told] = system.sql(
            "select count(*) as calls, count(*) filter (where coalesce(completion_tokens, 0) > 0 or possibly_billed) as"
            " paid, count(*) filter (where possibly_billed) as possibly, sum(cost)::float as cost from llm_calls"
        )
        return {
            "rows": rows,
            "completed": states["completed"],
            "failed": states["failed"],
            "reasons": dict(Counter(item["last_error_kind"] for item in system.items() if item["state"] == "failed")),
            "calls": len(server.calls),
            "noted_calls": told["calls"],
            "paid_calls": told["paid"],
            "possibly_paid": told["possibly"],
            "paid_for_each_row": round(told["paid"] / states["completed"], 3),
            "refused_for_pace": server.stats()["faults"].get("limit", 0),
            "refused_share": round(server.stats()["faults"].get("limit", 0) / len(server.calls), 4),
            "seconds": round(seconds),
        }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.analysis", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, and no result is written")
    share = 10 if parser.parse_args().quick else 1
    stop_like_ctrl_c()
    postgres, redis = Postgres().start(), Redis().start()
    try:
        faulty = OpenAIServer(shares=FAULTS, retry_after=1.0, latency=0.2)
        figures = {
            "threads": 2 * THREADS,
            "faults": FAULTS,
            "faulty": measured(faulty, 1000 // share, postgres, redis, ANALYSIS_TIMEOUT="5"),
            "paced": measured(
                OpenAIServer(limit=60, latency=0.2), 600 // share, postgres, redis, LLM_REQUESTS_PER_MINUTE="60"
            ),
        }
    finally:
        redis.stop()
        postgres.stop()
    print(json.dumps(figures, indent=2))
    if share == 1:
        RESULTS.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
