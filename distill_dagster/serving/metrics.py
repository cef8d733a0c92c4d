"""What `/metrics` shows, in Prometheus' format."""

from __future__ import annotations

from typing import Any

from distill_dagster.core.errors import DistillError

RELEASE_REMEDY = "Install the extra `release`: .venv/bin/pip install -c requirements/constraints.txt -e '.[release]'"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TENTHS = tuple(round(0.1 * number, 1) for number in range(1, 11))


class ServerMetrics:
    """The figures of one server, in a registry of its own.

    Raises:
        DistillError: prometheus-client is not installed.
    """

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError as error:
            raise DistillError(
                f"Serving needs the package prometheus-client, which cannot be imported ({error}). {RELEASE_REMEDY}"
            ) from None
        self.registry = CollectorRegistry()
        to: Any = {"registry": self.registry}
        self.requests = Counter("distill_requests_total", "Requests by path and status", ["path", "status"], **to)
        self.seconds = Histogram(
            "distill_request_seconds", "Seconds from request to answer", ["path"], buckets=SECONDS, **to
        )
        self.in_flight = Gauge("distill_requests_in_flight", "Requests that are being answered", **to)
        self.waiting = Gauge("distill_student_waiting", "Requests that wait for the student", **to)
        self.answers = Counter("distill_answers_total", "Answers by who gave them", ["route"], **to)
        self.confidence = Histogram("distill_student_confidence", "The student's confidence", buckets=TENTHS, **to)
        self.batch_size = Histogram(
            "distill_student_batch_size",
            "Prompts in one call of the student",
            buckets=(1, 2, 4, 8, 16, 32),
            **to,
        )
        self.teacher_failures = Counter(
            "distill_teacher_failures_total", "Requests that the teacher was to answer and did not", **to
        )
        self.disagreements = Counter(
            "distill_shadows_total", "Accepted requests that the teacher answered too", ["agrees"], **to
        )
        self.restarts = Counter("distill_student_restarts_total", "Times that the student was started again", **to)
        self.feedback = Counter("distill_feedback_total", "Answers that a user judged", ["verdict"], **to)
        self.log_failures = Counter("distill_log_failures_total", "Log lines that could not be written", **to)
        self.tokens = Counter("distill_student_tokens_total", "Tokens of the student", ["kind"], **to)

    def format(self) -> bytes:
        """The figures as text."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
