"""A source whose work asks a server outside; its table stands in the test that uses it."""

from datetime import timedelta

from app.errors import Permanent, Transient
from app.gpt.chat import build_chat
from app.sources import Result, Source
from app.work import Work
from tasks.base import define

TABLE = """
create table asked (device text primary key, prompt text, state text default 'pending', answer text);
select toban_watch('asked', 'asking', array['device'], 'state');
"""


def run(work: Work) -> Result:
    prompt = work.row["prompt"]
    if prompt.startswith("flaky") and work.attempt.attempt == 1:
        raise Transient(f"the line was busy: {prompt}")
    if prompt.startswith("hopeless") and work.attempt.attempt == 1:
        raise Permanent(f"nobody can answer: {prompt}")
    chat = build_chat(work.services.settings.gpt)
    try:
        answer = chat.complete(
            [{"role": "user", "content": prompt}], model="gpt-4.1-mini", timeout=timedelta(seconds=20), watch=work.check
        )
    finally:
        chat.close()
    return {"row": {"answer": answer.text}}


asking = define(Source(name="asking", queue="toy", title="Asking", run=run, every=timedelta(seconds=1)))
