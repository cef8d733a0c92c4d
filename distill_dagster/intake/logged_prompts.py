"""Take logged requests as prompts: what users ask becomes what the next refresh asks the teacher.

Log files stay where they are. `taken.json` next to them says up to which byte each was taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError

from distill_dagster.core.files import refuse_symlink, write_atomically
from distill_dagster.intake.inbox import InboxSummary, IncomingPrompt, accept_prompts, assign_slices
from distill_dagster.intake.request_log import LOG_PATTERN, LoggedRequest, read_requests_from
from distill_dagster.intake.request_sample import is_reserved
from distill_dagster.tasks import TaskFolder, Turn

TAKEN_FILE = "taken.json"


def take_logged_requests(
    folder: TaskFolder, inbox: Path, log: Path, shadow_shares: Mapping[int, float], *, lock_s: float = -1
) -> InboxSummary | None:
    """Take the requests that were logged since the last time. Those of the reserved sample stay in the log alone.

    A process that is killed in between takes some again, which then count as duplicates.

    Args:
        inbox: the task's own inbox, whose lock is held while prompts are stored.
        log: the task's folder of logged requests.
        shadow_shares: the share of shadowed requests by number of the release.
        lock_s: how many seconds to wait while another process takes files; -1 for no limit.

    Returns:
        What happened; None if nothing new was logged.

    Raises:
        InputError: the task's own files are malformed, so prompts cannot be compared with them. Nothing was taken.
        DistillError: another process holds the lock.
    """
    if not log.is_dir():
        return None
    refuse_symlink(log, log / TAKEN_FILE)
    before = _read_taken(log)
    now: dict[str, int] = {}
    requests: list[LoggedRequest] = []
    for path in sorted(log.glob(LOG_PATTERN)):
        start = before.get(path.name, 0)
        now[path.name] = start
        if not path.is_symlink() and path.stat().st_size > start:
            new, now[path.name] = read_requests_from(path, start)
            requests += new
    prompts = [
        prompt
        for one in requests
        if one.sampled and not is_reserved(one, shadow_shares.get(one.release, 0.0))
        if (prompt := _build_prompt(one, folder.task.inbox.text_field)) is not None
    ]
    summary = None
    if prompts:
        inbox.mkdir(parents=True, exist_ok=True)
        keys = assign_slices(prompts, folder.task.inbox)
        summary = accept_prompts(folder, inbox, prompts, keys, "served requests", lock_s=lock_s)
    if now != before:
        write_atomically(log / TAKEN_FILE, json.dumps(now, indent=1) + "\n")
    return summary


def _build_prompt(request: LoggedRequest, text_field: str) -> IncomingPrompt | None:
    """The request as a prompt; None if it has no text, or turns that a prompt cannot have, such as results of tools."""
    if not request.text.strip():
        return None
    try:
        turns = tuple(Turn.model_validate(turn) for turn in request.messages) if request.messages else None
    except ValidationError:
        return None
    fields = asdict(request) | {text_field: request.text}
    return IncomingPrompt(request.text, fields, id=request.id, slice=request.slice, messages=turns)


def _read_taken(log: Path) -> dict[str, int]:
    """Up to which byte each file was taken. A file that cannot be read means that nothing was."""
    try:
        value = json.loads((log / TAKEN_FILE).read_text(encoding="utf-8"))
        return {str(name): int(end) for name, end in value.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
