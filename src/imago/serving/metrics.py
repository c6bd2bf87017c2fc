"""Metrics of the server, for Prometheus."""

from imago.serving.limits import Limits

ROUTES = ("/", "/predict", "/health", "/metrics", "/openapi.json")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and histograms in a registry of their own, with those of the process (memory, files, CPU time)."""

    def __init__(self, limits: Limits) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("imago_requests", "Requests", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "imago_request_seconds", "Seconds of a request for predictions", registry=registry, buckets=SECONDS
        )
        self.images = Counter("imago_images", "Images, by predicted or unreadable", ["result"], registry=registry)
        self.batch_images = Histogram("imago_batch_images", "Images of a batch", registry=registry, buckets=SIZES)
        self.batch_seconds = Histogram(
            "imago_batch_seconds", "Seconds of a batch in the network", registry=registry, buckets=SECONDS
        )
        self.in_flight = Gauge("imago_in_flight", "Requests that are read or predicted", registry=registry)
        Gauge("imago_max_in_flight", "Limit of imago_in_flight", registry=registry).set(limits.max_in_flight)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request. Paths that do not exist have one label, else anybody could make any number."""
        route = path if path in ROUTES else "other"
        self.requests.labels(route, str(status)).inc()
        if route == "/predict" and status == 200:
            self.seconds.observe(seconds)

    @property
    def total(self) -> int:
        """Number of requests that were answered, or refused."""
        samples = (sample for metric in self.requests.collect() for sample in metric.samples)
        return int(sum(sample.value for sample in samples if sample.name == "imago_requests_total"))

    def text(self) -> bytes:
        """Return the text that Prometheus reads."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
