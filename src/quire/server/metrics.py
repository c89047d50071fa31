"""Prometheus metrics: vLLM's names where they mean the same, ``quire:*`` for what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric

from quire.engine.messages import EngineReady, EngineStats

_LABELS = ("model_name", "engine")
_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
_FIRST_TOKEN_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
                        20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
_REQUEST_SECONDS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
                    480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
_LENGTHS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))

_HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "time_to_first_token_seconds": ("Time from arrival to the first token.", _FIRST_TOKEN_SECONDS),
    "inter_token_latency_seconds": ("Time between two tokens of a request.", _TOKEN_SECONDS),
    "request_time_per_output_token_seconds": ("Mean time per token after the first.", _TOKEN_SECONDS),
    "e2e_request_latency_seconds": ("Time from arrival to the last token.", _REQUEST_SECONDS),
    "request_queue_time_seconds": ("Time from arrival to the first step.", _REQUEST_SECONDS),
    "request_inference_time_seconds": ("Time from the first step to the last token.", _REQUEST_SECONDS),
    "request_prefill_time_seconds": ("Time from the first step to the first token.", _REQUEST_SECONDS),
    "request_decode_time_seconds": ("Time from the first to the last token.", _REQUEST_SECONDS),
    "request_prompt_tokens": ("Prompt tokens of a request.", _LENGTHS),
    "request_generation_tokens": ("Generated tokens of a request.", _LENGTHS),
    "request_params_max_tokens": ("max_tokens of a request.", _LENGTHS),
    "request_params_n": ("n of a request.", (1.0, 2.0, 5.0, 10.0, 20.0)),
    "request_prefill_kv_computed_tokens": ("Prompt tokens of a request that were not cached.", _LENGTHS),
}


@dataclass(frozen=True, slots=True)
class Timings:
    """When one sequence passed each stage, seconds since the epoch; ``None`` where it did not."""

    arrival: float
    scheduled: float | None
    first_token: float | None
    finished: float


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self, model_name: str, stats: Callable[[], EngineStats | None]) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._labels = {"model_name": model_name, "engine": "0"}
        self._histograms = {
            name: Histogram(f"vllm:{name}", text, _LABELS, buckets=buckets, registry=self.registry).labels(
                **self._labels
            )
            for name, (text, buckets) in _HISTOGRAMS.items()
        }
        self._success = self._counter("vllm:request_success", "Finished requests.", "finished_reason")
        self._rejections = self._counter("quire:rejected_requests", "Requests refused, by HTTP status.", "status")
        self._gone = self._counter("quire:client_disconnects", "Requests whose client went away.")
        self._http = self._counter("http_requests", "HTTP requests by outcome.", "handler", "method", "status")
        self.inter_token = self._histograms["inter_token_latency_seconds"].observe
        self.phases: Mapping[str, float] = {}
        self.ready: EngineReady | None = None
        self._stats = stats
        self.registry.register(self)

    def render(self) -> bytes:
        return generate_latest(self.registry)

    def client_gone(self) -> None:
        self._gone.labels(**self._labels).inc()

    def http_request(self, route: str, method: str, status: int) -> None:
        self._http.labels(**self._labels, handler=route, method=method, status=str(status)).inc()
        if status >= 400:
            self._rejections.labels(**self._labels, status=str(status)).inc()

    def admitted(self, n: int, max_tokens: int) -> None:
        self._observe("request_params_n", n)
        self._observe("request_params_max_tokens", max_tokens)

    def finished(self, reason: str, t: Timings, prompt_tokens: int, cached_tokens: int, tokens: int) -> None:
        """Account for one sequence that ended, however it did."""
        self._success.labels(**self._labels, finished_reason=reason).inc()
        self._observe("request_prompt_tokens", prompt_tokens)
        self._observe("request_generation_tokens", tokens)
        self._observe("request_prefill_kv_computed_tokens", prompt_tokens - cached_tokens)
        self._observe("e2e_request_latency_seconds", t.finished - t.arrival)
        if t.scheduled is not None:
            self._observe("request_queue_time_seconds", t.scheduled - t.arrival)
            self._observe("request_inference_time_seconds", t.finished - t.scheduled)
        if t.first_token is not None:
            self._observe("time_to_first_token_seconds", t.first_token - t.arrival)
            self._observe("request_decode_time_seconds", t.finished - t.first_token)
            if t.scheduled is not None:
                self._observe("request_prefill_time_seconds", t.first_token - t.scheduled)
            if tokens > 1:
                self._observe("request_time_per_output_token_seconds", (t.finished - t.first_token) / (tokens - 1))

    def collect(self) -> Iterable[Metric]:
        """What the engine counts, read when scraped."""
        values = list(self._labels.values())
        if (stats := self._stats()) is not None:
            for name, value in _gauges(stats, self.ready).items():
                gauge = GaugeMetricFamily(name, "See docs: metrics.", labels=_LABELS)
                gauge.add_metric(values, value)
                yield gauge
            for name, value in _counters(stats).items():
                counter = CounterMetricFamily(name, "See docs: metrics.", labels=_LABELS)
                counter.add_metric(values, value)
                yield counter
            sources = CounterMetricFamily("vllm:prompt_tokens_by_source", "Prompt tokens.", labels=[*_LABELS, "source"])
            sources.add_metric([*values, "local_compute"], stats.prompt_tokens - stats.cached_tokens)
            sources.add_metric([*values, "local_cache_hit"], stats.cached_tokens)
            yield sources
        startup = GaugeMetricFamily("quire:startup_seconds", "Start-up time by phase.", labels=[*_LABELS, "phase"])
        for phase, seconds in self.phases.items():
            startup.add_metric([*values, phase], seconds)
        yield startup
        if self.ready is not None:
            info = GaugeMetricFamily(
                "vllm:cache_config_info", "Pages.", labels=[*_LABELS, "block_size", "num_gpu_blocks"]
            )
            info.add_metric([*values, str(self.ready.page_size), str(self.ready.num_pages)], 1)
            yield info

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, (*_LABELS, *labels), registry=self.registry)

    def _observe(self, name: str, value: float) -> None:
        self._histograms[name].observe(max(0.0, value))


def _gauges(s: EngineStats, ready: EngineReady | None) -> dict[str, float]:
    pages = ready.num_pages if ready is not None else s.total_pages
    return {
        "vllm:num_requests_running": s.running,
        "vllm:num_requests_waiting": s.waiting,
        "vllm:kv_cache_usage_perc": s.kv_cache_usage,
        "quire:kv_pages_free": s.free_pages if s.total_pages else pages,  # an idle engine has told nothing yet
        "quire:kv_pages_total": pages,
    }


def _counters(s: EngineStats) -> dict[str, float]:
    return {
        "vllm:prompt_tokens": s.prompt_tokens,
        "vllm:generation_tokens": s.generation_tokens,
        "vllm:prompt_tokens_cached": s.cached_tokens,
        "vllm:prefix_cache_queries": s.prompt_tokens,
        "vllm:prefix_cache_hits": s.cached_tokens,
        "vllm:num_preemptions": s.preemptions,
        "quire:steps": s.steps,
        "quire:computed_tokens": s.computed_tokens,
        "quire:queue_rejections": s.rejected,
    }
