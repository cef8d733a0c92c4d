"""What a person is told when a run failed: a file to read and, where one is set, a call of a webhook."""

from __future__ import annotations

import json
import re
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.error import URLError

from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

WEBHOOK_VARIABLE = "DISTILL_ALERT_WEBHOOK"
"""The variable with the address that every alert is sent to, as JSON with the field `text`."""
WEBHOOK_TIMEOUT_S, WEBHOOK_TRIES = 3.0, 2
"""Dagster gives a sensor a minute, in which it may have five failed runs to tell of."""


@dataclass(frozen=True)
class Alert:
    """A failed run. `steps` maps what failed to its message; `time` is ISO 8601, in UTC."""

    run_id: str
    job: str
    time: str
    partition: str | None
    steps: dict[str, str]

    @property
    def text(self) -> str:
        where = f"{self.job}, partition {self.partition}" if self.partition else self.job
        lines = [f"Run {self.run_id[:8]} of {where} failed at {self.time}.", ""]
        lines += [f"- {step}: {message}" for step, message in self.steps.items()] or ["- no step failed: see the run"]
        lines += ["", f"The whole log: Runs > {self.run_id[:8]} in the UI. What was made before stays as it is, and"]
        lines += ["what the teacher answered is stored; mend the cause and run `distill refresh`."]
        return "\n".join(lines)


def write_alert(folder: Path, alert: Alert) -> Path:
    """Write an alert as a text file, named by time and run; one that is there already is written anew."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^0-9T]", "", alert.time[:19])
    path = folder / f"{name}-{alert.run_id[:8]}.md"
    temporary = path.with_suffix(".writing")
    temporary.write_text(alert.text + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


@retry(
    retry=retry_if_exception_type((URLError, TimeoutError, ConnectionError)),
    stop=stop_after_attempt(WEBHOOK_TRIES),
    wait=wait_exponential(multiplier=0.2, max=2),
    reraise=True,
)
def post_alert(url: str, alert: Alert) -> None:
    """Send an alert; `text` is what chat services show.

    Raises:
        URLError: the address did not answer, or answered with an error, twice.
        ValueError: it is not an http address.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{WEBHOOK_VARIABLE} wants an http or https address")
    body = json.dumps({"text": alert.text} | asdict(alert)).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=WEBHOOK_TIMEOUT_S):
        pass
