"""POST /api/monitor/job-report, as it is mounted; what it takes and answers is tested with app.monitor.report."""

from collections.abc import Callable

from tests.support.web import Site

REPORT = {"job_key": "nightly", "title": "夜間バッチ", "status": "success", "finished_at": "2026-11-25T03:00:00Z"}
PATH = "/api/monitor/job-report"


def test_without_a_secret_nothing_is_taken(open_site: Callable[..., Site]) -> None:
    site = open_site()
    answer = site.browser({}).post(PATH, json=REPORT)
    assert (answer.status_code, answer.json()) == (500, {"error": "Server configuration error"})


def test_reports_with_the_secret(open_site: Callable[..., Site]) -> None:
    site = open_site(portal={"webhook_secret": "hunter2"})
    program = site.browser({"X-TC-Portal-Webhook-Secret": "hunter2"})
    answer = program.post(PATH, json=REPORT)
    assert answer.status_code == 200
    assert answer.json()["job_key"] == "nightly"
    assert site.browser({}).post(PATH, json=REPORT).json() == {"error": "Invalid or missing webhook secret"}
    assert program.post(PATH, content=b"{").json() == {"error": "Invalid JSON body"}
    assert program.get(PATH).status_code == 405
    answers = {program.post(PATH, content=b"{").status_code for _ in range(240)}
    assert answers == {400, 429}
