"""Append accepted prompts to the file of a slice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill_dagster.core.files import append_durably
from distill_dagster.tasks.accepted import AcceptedPrompt, read_accepted_until


def append_accepted(path: Path, prompts: Sequence[AcceptedPrompt]) -> None:
    """Append prompts, durable when this returns. The caller holds the inbox's lock: one writer at a time.

    Raises:
        InputError: the file has broken lines.
        OSError: the file cannot be written.
    """
    _, end = read_accepted_until(path)  # an unfinished line after it is removed
    lines = [prompt.model_dump_json(exclude_none=True).encode() + b"\n" for prompt in prompts]
    append_durably(path, b"".join(lines), keep_until=end)
