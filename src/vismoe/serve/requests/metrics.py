"""What the service counts, for Prometheus, in a registry of its own."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one service."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory and processor time
        self.requests = Counter(
            "vismoe_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "vismoe_request_seconds",
            "Seconds from a request's head to its answer.",
            ["path"],
            registry=registry,
            buckets=SECONDS,
        )
        self.images = Counter("vismoe_images", "Images that a network has run on.", registry=registry)
        self.batches = Histogram("vismoe_batch_images", "Images per forward pass.", registry=registry, buckets=SIZES)
        self.forward_seconds = Histogram(
            "vismoe_forward_seconds", "Seconds of a forward pass.", registry=registry, buckets=SECONDS
        )
        self.queue = Gauge("vismoe_queue_images", "Images that wait.", registry=registry)
        self.reloads = Counter("vismoe_reloads", "Reloads of the models by result.", ["result"], registry=registry)

    def watch_queue(self, length: Callable[[], float]) -> None:
        """Makes the length of the queue what a function returns."""
        self.queue.set_function(length)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answered request. `path`: that of the route, not of the request: an attacker could make millions
        of others."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def batch(self, images: int, seconds: float) -> None:
        """Counts a forward pass."""
        self.images.inc(images)
        self.batches.observe(images)
        self.forward_seconds.observe(seconds)

    def text(self) -> bytes:
        """Everything in the text format of Prometheus."""
        return generate_latest(self.registry)
