"""Traces, where they are wanted: what sends them is installed, and somebody takes them."""

import socket
from urllib.parse import urlsplit

from app.doctor.finding import Finding, Findings
from app.settings import Traces
from app.settings.traces import REMEDY

PATIENCE = 3.0  # seconds


def steps(settings: Traces) -> Findings:
    if not settings.on or settings.endpoint is None:
        return
    if not settings.installed:
        yield Finding("WARN", "D801", "traces are wanted, and what sends them is not installed", REMEDY)
        return
    parts = urlsplit(settings.endpoint)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), PATIENCE).close()
    except OSError as error:
        remedy = "start the collector, or correct OTEL_EXPORTER_OTLP_ENDPOINT; work goes on without it"
        yield Finding("WARN", "D802", f"{parts.hostname}:{port} takes no traces: {error}", remedy)
    else:
        yield Finding("OK", "D802", f"traces go to {parts.hostname}:{port}")
