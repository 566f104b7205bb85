"""Who answers prompts can be reached, takes the key, and has a price."""

from datetime import timedelta
from importlib.util import find_spec

from app.doctor.finding import Finding, Findings
from app.gpt.chat import build_chat
from app.gpt.failures import CallFailed
from app.gpt.prices import price_of
from app.settings import Gpt

_TIMEOUT = timedelta(seconds=15)


def verdicts(settings: Gpt) -> Findings:
    """The list of models is asked for, which costs nothing."""
    if settings.offline:
        if find_spec("vaderSentiment"):
            yield Finding("OK", "D701", "prompts are answered by the offline analyser, English only: no key is set")
        else:
            yield Finding(
                "WARN",
                "D701",
                "nobody answers prompts: no OPENAI_API_KEY is set, and the offline analyser is not installed",
                "set OPENAI_API_KEY or OPENAI_BASE_URL; or pip install 'toban[demo]'. Without analysis: ignore this",
            )
        return
    chat = build_chat(settings)
    try:
        page = chat.call(lambda client: client.models.list(), timeout=_TIMEOUT, watch=lambda: None)
    except CallFailed as failed:
        yield Finding("FAIL", "D701", str(failed.error), "see the message; correct OPENAI_API_KEY or OPENAI_BASE_URL")
        return
    finally:
        chat.close()
    yield Finding("OK", "D701", f"{chat.host} answers and takes the key")
    names = {model.id for model in page.data}
    if names and settings.openai_model not in names:
        yield Finding(
            "WARN",
            "D702",
            f"{chat.host} does not list the model {settings.openai_model}",
            f"set OPENAI_MODEL to one of its {len(names)}, such as {', '.join(sorted(names)[:5])}",
        )
    if price_of(settings.openai_model, settings.llm_prices) is None:
        yield Finding(
            "WARN",
            "D703",
            f"what {settings.openai_model} costs is not known, so calls are counted with their tokens alone",
            "set LLM_PRICES, or ignore this where it costs nothing",
        )
