"""Reading the log of served requests: an odd line costs that line alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill_dagster.intake.request_log import (
    FEEDBACK_FILE,
    Feedback,
    format_log_line,
    read_feedback,
    read_request_log,
    read_requests_from,
)
from tests.intake.test_logged_prompts import make

ODD = (b"{}", b"[1, 2]", b"null", b'"text"', b'{"id": "r9", "who": "another program"}', b"{", b"\xff\xfe")


@pytest.mark.parametrize("odd", ODD)
def test_a_line_that_is_no_request_costs_itself_alone(odd: bytes, tmp_path: Path) -> None:
    rows = [make(1), make(2)]
    path = tmp_path / "requests-1-1.jsonl"
    path.write_bytes(format_log_line(rows[0]) + odd + b"\n" + format_log_line(rows[1]) + b'{"id": "unfinis')
    assert list(read_request_log(tmp_path)) == rows
    found, end = read_requests_from(path, 0)
    assert found == rows
    assert path.read_bytes()[end:] == b'{"id": "unfinis'


@pytest.mark.parametrize("odd", ODD)
def test_a_line_that_is_no_feedback_costs_itself_alone(odd: bytes, tmp_path: Path) -> None:
    said = Feedback("r1", "2026-11-26T10:00:00+00:00", True, None)
    (tmp_path / FEEDBACK_FILE).write_bytes(odd + b"\n" + format_log_line(said))
    assert list(read_feedback(tmp_path)) == [said]
