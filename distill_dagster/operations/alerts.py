"""Alert a person about a failed run: write a file and, if one is set, call a webhook."""

from __future__ import annotations

import json
import re
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.error import URLError

from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from distill_dagster.core.files import write_atomically

WEBHOOK_VARIABLE = "DISTILL_ALERT_WEBHOOK"
"""The environment variable with the webhook's URL. An alert is sent as JSON with the field `text`."""
WEBHOOK_TIMEOUT_S, WEBHOOK_TRIES = 3.0, 2
"""Dagster gives a sensor one minute, in which it may have to send five alerts."""


@dataclass(frozen=True)
class Alert:
    """A failed run. `steps` maps each failed step to its message; `time` is ISO 8601, in UTC."""

    run_id: str
    job: str
    time: str
    partition: str | None
    steps: dict[str, str]

    @property
    def text(self) -> str:
        """The message for a person: what failed, and what to do."""
        where = f"{self.job}, partition {self.partition}" if self.partition else self.job
        lines = [f"Run {self.run_id[:8]} of {where} failed at {self.time}.", ""]
        lines += [f"- {step}: {message}" for step, message in self.steps.items()] or ["- no step failed: see the run"]
        lines += ["", f"The full log: Runs > {self.run_id[:8]} in the UI. Existing artifacts are unchanged and the"]
        lines += ["teacher's answers are stored. Fix the cause, then run `distill refresh`."]
        return "\n".join(lines)


def write_alert(folder: Path, alert: Alert) -> Path:
    """Write an alert as a text file, named by time and run. An existing file is replaced."""
    name = re.sub(r"[^0-9T]", "", alert.time[:19])
    path = folder / f"{name}-{alert.run_id[:8]}.md"
    write_atomically(path, alert.text + "\n")
    return path


@retry(
    retry=retry_if_exception_type((URLError, TimeoutError, ConnectionError)),
    stop=stop_after_attempt(WEBHOOK_TRIES),
    wait=wait_exponential(multiplier=0.2, max=2),
    reraise=True,
)
def post_alert(url: str, alert: Alert) -> None:
    """Send an alert. Chat services show its `text`.

    Raises:
        URLError: the server did not answer, or answered with an error, in each try.
        ValueError: the URL does not start with http:// or https://.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{WEBHOOK_VARIABLE} must be a URL that starts with http:// or https://")
    body = json.dumps({"text": alert.text} | asdict(alert)).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=WEBHOOK_TIMEOUT_S):
        pass
