"""Source `analysis`: the prompt of a `dashboard` row becomes a language model's verdict (docs/sources/analysis.md)."""

from app.compare import verdicts
from app.gpt.analyst import analyse, models
from app.gpt.batches import opened_before
from app.sources import Source
from tasks.base import define

analysis = define(
    Source(
        name="analysis",
        queue="gpt",
        title="Time block analysis",
        run=analyse,
        models=models,
        opened_before=opened_before,
        compare=verdicts,
    )
)
