"""The counters, in one place, so that every name and label is found here.

Shapes follow what operators know from Triton: requests and failures, inferences against executions (their ratio is the
mean batch size), and seconds spent per step, by model and version.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 100)


class Metrics:
    """One set of counters on a registry of its own, so that two servers in one process do not collide."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        model = ("model", "version")
        self.http_seconds = Histogram(
            "labelloop_http_request_seconds",
            "Time to answer",
            ("path", "status"),
            registry=self.registry,
            buckets=BUCKETS_S,
        )
        self.requests = Counter("labelloop_predict_requests", "Requests to /predict", model, registry=self.registry)
        self.tasks = Counter("labelloop_predict_tasks", "Tasks answered", model, registry=self.registry)
        self.failures = Counter(
            "labelloop_predict_failures", "Tasks that failed, by reason", (*model, "code"), registry=self.registry
        )
        self.inferences = Counter("labelloop_inferences", "Pictures given to the model", model, registry=self.registry)
        self.executions = Counter(
            "labelloop_executions", "Runs of the model (one per batch)", model, registry=self.registry
        )
        self.queue_seconds = Counter(
            "labelloop_queue_seconds", "Time spent waiting for the model", model, registry=self.registry
        )
        self.infer_seconds = Counter(
            "labelloop_infer_seconds", "Time spent in the model", model, registry=self.registry
        )
        self.fetch_seconds = Counter(
            "labelloop_media_fetch_seconds", "Time spent fetching media", model, registry=self.registry
        )
        self.decode_seconds = Counter(
            "labelloop_media_decode_seconds", "Time spent decoding media", model, registry=self.registry
        )
        self.cache_hits = Counter(
            "labelloop_media_cache_hits", "Media found in the cache", model, registry=self.registry
        )
        self.cache_misses = Counter("labelloop_media_cache_misses", "Media fetched anew", model, registry=self.registry)
        self.events = Counter("labelloop_webhook_events", "Webhook calls", ("action",), registry=self.registry)
        self.overloaded = Counter(
            "labelloop_overloaded", "Requests refused because the queue was full", registry=self.registry
        )
        self.in_flight = Gauge("labelloop_predict_in_flight", "Requests in work or waiting", registry=self.registry)
        self.models_ready = Gauge("labelloop_model_ready", "1 when the model is warm", model, registry=self.registry)
