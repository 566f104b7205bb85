"""`toban spending`: what the calls to language models came to."""

import json
from decimal import Decimal

import typer
from rich.markup import escape

from app.cli.console import Grid, console
from app.database import open_database
from app.settings import read


def spending(*, as_json: bool) -> None:
    settings = read(audio=False)
    gpt = settings.gpt
    database = open_database(settings.database, shared=False)
    try:
        told = database.call("toban_spending", zone=settings.audio.device_timezone)
    finally:
        database.close()
    if as_json:
        typer.echo(json.dumps(told, ensure_ascii=False))
        return
    screen = console()
    for name, spent, budget in (
        ("today", told["today"], gpt.llm_budget_daily),
        ("this month", told["month"], gpt.llm_budget_monthly),
    ):
        screen.print(f"{_dollars(spent)} {name}" + (f", of {_dollars(budget)}" if budget else ""))
    if not told["outcomes"]:
        screen.print("No call in the last 31 days.")
        return
    completed, paid = told["completed"], told["paid_calls"]
    ratio = f", {paid / completed:.2f} for each" if completed else ""
    lost = f"; {told['possibly_billed']} of them perhaps, their answers were lost" if told["possibly_billed"] else ""
    screen.print(f"{completed} rows completed in 31 days by {paid} paid calls{ratio}{lost}\n")
    outcomes = Grid("outcome", "calls")
    for outcome, count in sorted(told["outcomes"].items(), key=lambda entry: -entry[1]):
        outcomes.add_row(outcome, str(count))
    models = Grid("model", "calls", "cost")
    for model, of in sorted(told["models"].items()):
        models.add_row(escape(model), str(of["calls"]), _dollars(of["cost"]))
    for table in (outcomes, models):
        screen.print(table)
        screen.print()


def _dollars(amount: float | Decimal | None) -> str:
    return f"{Decimal(str(amount or 0)):.4f} USD"
