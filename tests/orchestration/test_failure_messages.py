"""What a person reads of a failed step."""

from __future__ import annotations

import sys

import pytest
from dagster._utils.error import SerializableErrorInfo, serializable_error_info_from_exc_info

from distill_dagster.core.errors import ModelError
from distill_dagster.orchestration import get_failure_message


def wrap(outer: type[Exception], inner: Exception, text: str = "Run `make setup`.") -> SerializableErrorInfo:
    """A failure as Dagster stores it: its own error around `outer`, which was raised from `inner`."""
    try:
        try:
            try:
                raise inner
            except Exception as error:
                raise outer(text) from error
        except Exception as error:
            raise RuntimeError("Error occurred while executing op") from error
    except RuntimeError:
        return serializable_error_info_from_exc_info(sys.exc_info())


@pytest.mark.parametrize("inner", [OSError("no such file"), ModelError("inside")])
def test_our_own_outermost_error_is_shown(inner: Exception) -> None:
    assert get_failure_message(wrap(ModelError, inner)) == "Run `make setup`."


def test_without_one_the_cause_is_shown() -> None:
    assert get_failure_message(wrap(ValueError, OSError("no such file"))) == "no such file"


def test_a_step_without_an_error_refers_to_the_log() -> None:
    assert "log" in get_failure_message(None)
