"""Flower's configuration: `celery -A app flower` reads it, wherever it is started (app/celery.py names it).

Nobody comes in without a sign-in. A task is shown with what it is about: its row's key, and the address of that row's
page. Options on Flower's command line win over what is here.
"""

from typing import Any
from urllib.parse import quote

from tornado.options import options as given

from app.settings import Flower, SettingsError, Web, load_group

SIGN_IN = """Flower does not start: whoever reaches it may stop workers and revoke tasks, so it needs a sign-in.
  → set FLOWER_BASIC_AUTH=name:password in the environment or in .env (several are separated by commas),
    or Flower's FLOWER_AUTH and FLOWER_AUTH_PROVIDER for a sign-in by OAuth"""

try:
    _flower, _web = load_group(Flower), load_group(Web)
except SettingsError as error:
    raise SystemExit(str(error)) from None

# What the environment and the command line say is here already. An empty variable would let in whoever gives no name.
basic_auth = [entry for entry in given.basic_auth if entry] or _flower.sign_ins()
if not (basic_auth or given.auth):
    raise SystemExit(SIGN_IN)
address = _flower.flower_address
port = _flower.flower_port
url_prefix = _flower.flower_url_prefix.strip("/")
natural_time = True
# What it shows is the broker's news since it started; the ledger has the history.
persistent = False
tasks_columns = "name,args,state,received,started,runtime,worker,uuid"


def format_task(task: Any) -> Any:  # noqa: ANN401 - celery.events.state.Task, a copy
    """Show the address of the item's page beside what the task is about.

    Flower shows fields as plain text, so it is an address to copy, not a link.
    """
    key, claim, _ = (task.args or "").rpartition(" (claim ")
    if claim and _web.web_base_url:
        source = task.name.removeprefix("tasks.")
        task.page = f"{_web.web_base_url.rstrip('/')}/work/{quote(source, safe='')}/{quote(key, safe='')}"
        task._fields = (*task._fields, "page")
    return task
