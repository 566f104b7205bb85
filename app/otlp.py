"""What sends spans to a collector; only there with the extra `otel`. All its settings are the standard's, `OTEL_…`."""

import logging
import os
from collections.abc import Sequence
from socket import gethostname

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from app import tracing

log = structlog.get_logger("toban.traces")


class Told(SpanExporter):
    """Tells once that the collector is away, and once that it is back."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._away = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception:  # noqa: BLE001 - a library's own; spans are worth no more than a line
            result = SpanExportResult.FAILURE
        away = result is not SpanExportResult.SUCCESS
        if away and not self._away:
            log.warning("traces.away", remedy="start the collector, or correct OTEL_EXPORTER_OTLP_ENDPOINT")
        elif self._away and not away:
            log.info("traces.back")
        self._away = away
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def build_provider(role: str) -> TracerProvider:
    """Spans go out in the background, some at a time; while nobody takes them, the newest few thousand are kept."""
    # Of a collector that is away one line tells; the library would tell of each batch and each try.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    own = {
        "service.name": f"toban-{role}",
        "service.version": tracing.program(),
        "service.instance.id": f"{gethostname()}:{os.getpid()}",
    }
    # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say wins.
    resource = Resource.create(own).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Told(OTLPSpanExporter())))
    return provider
