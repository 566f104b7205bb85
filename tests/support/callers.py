"""A worker process whose threads call a chat server within a shared limiter: `python -m tests.support.callers`.

Its last line tells how the calls ended, as a JSON object of counts.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Lock

from app.errors import RateLimited
from app.gpt.chat import Chat
from app.gpt.failures import CallFailed
from app.gpt.limiter import Limiter
from app.gpt.verdict import SCHEMA
from tests.support.openai_server import KEY


def call(chat: Chat, limiter: Limiter, prompts: Iterator[str], lock: Lock, tokens: int) -> Counter[str]:
    """One thread: the next prompt, until there is none; what a limit refuses is asked for again."""
    ended: Counter[str] = Counter()
    prompt = ""
    while True:
        if not prompt:
            with lock:
                prompt = next(prompts, "")
            if not prompt:
                return ended
        try:
            limiter.acquire(tokens, lambda: None, patience=60)
            completion = chat.complete(
                [{"role": "user", "content": prompt}],
                model="gpt-4.1-mini",
                timeout=timedelta(seconds=30),
                watch=lambda: None,
            )
        except RateLimited:
            ended["out of patience"] += 1
        except CallFailed as failed:
            limiter.observe(failed.limits)
            ended[failed.outcome] += 1
        else:
            limiter.observe(completion.limits)
            ended["answered"] += 1
            prompt = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--redis")
    parser.add_argument("--name", required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--learns", action="store_true")
    parser.add_argument("--window", type=int, default=60)
    parser.add_argument("--size", type=int, default=100, help="tokens of a call")
    given = parser.parse_args()
    chat = Chat(given.url, KEY, SCHEMA)
    limiter = Limiter(given.redis, given.requests, given.tokens, "the server", learns=given.learns, window=given.window)
    # 4 characters are a token.
    prompts = iter([f"{given.name} {number} ".ljust(4 * given.size, ".") for number in range(given.calls)])
    lock = Lock()
    with ThreadPoolExecutor(given.threads) as pool:
        threads = [pool.submit(call, chat, limiter, prompts, lock, given.size) for _ in range(given.threads)]
        ended = sum((thread.result() for thread in threads), Counter())
    limiter.close()
    chat.close()
    print(json.dumps(ended))  # noqa: T201 - for whoever started it


if __name__ == "__main__":
    main()
