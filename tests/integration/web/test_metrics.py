"""/metrics as Prometheus reads it, and whether docs, dashboard and rules speak of what is really there."""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import promql_parser as promql
import psycopg
import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text
from prometheus_client.samples import Sample

from app.web.metrics import KINDS
from tests.support.away import away
from tests.support.full import fill
from tests.support.servers import ROOT, Postgres
from tests.support.web import Site

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
DASHBOARD = ROOT / "deploy/grafana/toban.json"
RULES = ROOT / "deploy/prometheus/toban.rules.yml"
# What Prometheus adds by itself.
ADDED = {"up": {"job", "instance"}}


def scrape(site: Site, key: str | None = None, accept: str = "*/*") -> httpx.Response:
    key = key or site.accounts.add_key(f"prometheus-{len(site.accounts.keys())}", ["metrics"])
    return site.browser({"Authorization": f"Bearer {key}", "Accept": accept}).get("/metrics")


def samples(answer: httpx.Response) -> list[Sample]:
    assert answer.status_code == 200, answer.text
    parse = openmetrics if answer.headers["content-type"].startswith("application/openmetrics-text") else text
    return [sample for family in parse(answer.text) for sample in family.samples]


def value(found: list[Sample], name: str, **labels: str) -> float:
    [sample] = [s for s in found if s.name == name and s.labels == labels]
    return sample.value


@pytest.fixture
def full(open_site: Callable[..., Site], database_url: str) -> Site:
    fill(database_url)
    return open_site()


def test_both_formats_say_the_same(full: Site) -> None:
    key = full.accounts.add_key("prometheus", ["metrics"])
    plain, modern = scrape(full, key), scrape(full, key, OPENMETRICS)
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert modern.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert modern.text.endswith("# EOF\n")
    same = [
        {(s.name, *sorted(s.labels.items())): s.value for s in samples(answer) if "oldest" not in s.name}
        for answer in (plain, modern)
    ]
    assert same[0] == same[1]


def test_what_the_numbers_are(full: Site) -> None:
    found = samples(scrape(full))
    assert value(found, "toban_items", source="transcription", state="pending") == 3
    assert value(found, "toban_items", source="analysis", state="failed") == 0
    assert value(found, "toban_items_due", source="transcription", queue="whisper") == 3
    assert value(found, "toban_attempts_total", source="transcription", outcome="retry", kind="transient") == 1
    for bound, n in (("300.0", 1), ("600.0", 2), ("+Inf", 2)):
        assert value(found, "toban_item_wait_seconds_bucket", source="transcription", le=bound) == n
    assert value(found, "toban_item_wait_seconds_count", source="transcription") == 2
    assert value(found, "toban_item_wait_seconds_sum", source="transcription") == 403
    assert value(found, "toban_item_run_seconds_count", source="transcription") == 1
    assert value(found, "toban_speech_audio_seconds_total", model="base", engine="faster-whisper") == 1800
    assert value(found, "toban_llm_tokens_total", model="gpt-4.1-mini", type="cached") == 40
    assert value(found, "toban_llm_cost_usd_total", model="gpt-4.1-mini", lane="direct") == 0.25
    assert value(found, "toban_llm_spent_usd", period="day") == 0.25
    assert value(found, "toban_workers", node="whisper@host", queue="whisper") == 1
    assert value(found, "toban_worker_processes", node="whisper@host", queue="whisper") == 2
    assert value(found, "toban_worker_memory_bytes", node="whisper@host", queue="whisper") == 200
    assert not [s for s in found if s.name == "toban_worker_memory_limit_bytes" and s.labels["queue"] != "whisper"]
    assert value(found, "toban_incidents", kind="beat") == 1
    assert value(found, "toban_incidents", kind="items") == 0
    assert value(found, "toban_job_last_duration_seconds", job_name="transcription") == 2
    assert value(found, "toban_job_failing", job_name="backup") == 1
    assert value(found, "toban_queue_held", queue="gpt", cause="budget") == 1
    assert not [s for s in found if "budget" in s.name], "none is set"


def test_what_is_left_of_the_budgets(open_site: Callable[..., Site], database_url: str) -> None:
    fill(database_url)
    site = open_site()
    gpt = site.services.settings.gpt.model_copy(update={"llm_budget_daily": 1, "llm_budget_monthly": 0.1})
    object.__setattr__(site.services, "settings", site.services.settings.model_copy(update={"gpt": gpt}))
    found = samples(scrape(site))
    assert value(found, "toban_llm_budget_usd", period="day") == 1
    assert value(found, "toban_llm_budget_left_usd", period="day") == 0.75
    assert value(found, "toban_llm_budget_left_usd", period="month") == 0


def test_who_may_scrape(site: Site) -> None:
    assert site.browser({}).get("/metrics").status_code == 401
    for scope, status in (("badge", 403), ("read", 403), ("metrics", 200)):
        key = site.accounts.add_key(scope, [scope])
        assert scrape(site, key).status_code == status
    assert site.browser({"Authorization": f"Bearer {key}"}).get("/incidents").status_code == 403
    assert site.signed_in("viktor").get("/metrics").status_code == 200


def test_two_copies_tell_one_story(full: Site, open_site: Callable[..., Site], database_url: str) -> None:
    other = open_site()
    key = full.accounts.add_key("prometheus", ["metrics"])
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: scrape((full, other)[n % 2], key), range(16)))
    told = {
        tuple((s.name, *s.labels.items(), s.value) for s in samples(answer) if s.name.endswith(("_total", "_bucket")))
        for answer in answers
    }
    assert len(told) == 1
    with psycopg.connect(database_url) as connection:
        assert connection.execute("select count(*) from metric_events").fetchone() == (0,)


def test_odd_names_break_no_line(open_site: Callable[..., Site], database_url: str) -> None:
    name = 'gpt"} 1\nfake_metric{x="\\'
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("insert into metric_events values ('call', array[%s, 'ok', 'direct'], '{1,0,1,1}')", [name])
        connection.execute("insert into job_status (job_key, title, last_status, last_finished_at)"
                           " values (E'a\"b\\nc', 'x', 'success', now())")  # fmt: skip
    site = open_site()
    for accept in ("*/*", OPENMETRICS):
        found = samples(scrape(site, accept=accept))
        assert value(found, "toban_llm_calls_total", model=name.replace("\n", " "), outcome="ok", lane="direct") == 1
        assert value(found, "toban_job_failing", job_name='a"b\nc') == 0
        assert not [s for s in found if s.name == "fake_metric"]


def test_the_database_is_away(site: Site, postgres: Postgres) -> None:
    key = site.accounts.add_key("prometheus", ["metrics"])
    assert scrape(site, key).status_code == 200
    with away(postgres, site):
        answer = scrape(site, key, OPENMETRICS)
        assert answer.status_code == 503
        assert "toban_" not in answer.text.replace(key, "")
        assert "Traceback" not in answer.text
    assert scrape(site, key).status_code in {200, 503}


# --- docs, dashboard, rules -------------------------------------------------------------------------------------------


@pytest.fixture
def exposed(full: Site) -> dict[str, set[str]]:
    """Every sample's name and labels."""
    gpt = full.services.settings.gpt.model_copy(update={"llm_budget_daily": 1})
    object.__setattr__(full.services, "settings", full.services.settings.model_copy(update={"gpt": gpt}))
    names: dict[str, set[str]] = {}
    for sample in samples(scrape(full)):
        names.setdefault(sample.name, set()).update(sample.labels)
    return names


def test_every_metric_is_documented(exposed: dict[str, set[str]]) -> None:
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(toban_\w+)` \| (\w+) \| ([^|]*)\|", page, re.MULTILINE)
    documented = {}
    for name, kind, labels in rows:
        names = [f"{name}_bucket", f"{name}_count", f"{name}_sum"] if kind == "histogram" else [name]
        for each in names:
            documented[each] = set(re.findall(r"`(\w+)`", labels)) | ({"le"} if each.endswith("_bucket") else set())
    assert documented == exposed


def expressions(text_: str) -> Iterator[promql.VectorSelector]:
    """Every selector in an expression of PromQL. Raises `ValueError` where it is none."""
    # Grafana's own variables stand for a duration.
    yield from _selectors(promql.parse(text_.replace("$__rate_interval", "5m").replace("$__range", "1h")))


def _selectors(node: Any) -> Iterator[promql.VectorSelector]:
    if isinstance(node, promql.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "param", "vector_selector", "vs"):
        if (child := getattr(node, name, None)) is not None:
            yield from _selectors(child)
    for child in getattr(node, "args", None) or ():
        yield from _selectors(child)


def check(text_: str, exposed: dict[str, set[str]]) -> None:
    found = list(expressions(text_))
    assert found, text_
    known = exposed | ADDED
    for selector in found:
        name = str(selector.name)
        assert name in known, text_
        for matcher in selector.matchers.matchers:
            assert matcher.name in known[name] | {"job", "instance"}, text_
    for labels in re.findall(r"\bby \(([^)]*)\)", text_):
        named = {label.strip() for label in labels.split(",")}
        assert named <= set.union(*(known[str(s.name)] for s in found)) | {"le"}, text_


def test_the_dashboard_asks_for_what_there_is(exposed: dict[str, set[str]]) -> None:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len(panels) > 15
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["title"]
        place = panel["gridPos"]
        own = {(x, y) for x in range(place["x"], place["x"] + place["w"])
               for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert max(x for x, _ in own) < 24
        assert not cells & own, f"{panel['title']} covers another"
        cells |= own
    legends = set()
    for panel in panels:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            check(target["expr"], exposed)
            legends |= set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
    assert legends <= set.union(*exposed.values())
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            check(re.findall(r"label_values\((\w+),", variable["query"]["query"])[0], exposed)


def headings(page: Path) -> set[str]:
    """The anchors of a page, as code hosts make them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in found}


def test_the_rules_ask_for_what_there_is_and_name_a_remedy(exposed: dict[str, set[str]]) -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 5
    for rule in rules:
        check(rule["expr"], exposed)
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        for kind in KINDS:
            link = rule["annotations"]["runbook_url"].replace("{{ $labels.kind }}", kind)
            path, _, anchor = link.partition("#")
            assert not anchor or anchor in headings(ROOT / path), link
            assert (ROOT / path).exists()
    incident = next(rule for rule in rules if "toban_incidents" in rule["expr"])
    assert incident["annotations"]["runbook_url"] == "docs/runbook.md#{{ $labels.kind }}"


def test_the_example_scrapes_with_a_key() -> None:
    [job] = yaml.safe_load(Path(ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert job["job_name"] == "toban"
    assert job["authorization"]["credentials_file"]
    assert job["metrics_path"] == "/metrics"
