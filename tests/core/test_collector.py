"""The garbage collector pauses for a while, and goes on whatever happens."""

from __future__ import annotations

import gc

import pytest

from distill_dagster.core.collector import pause_collector


def test_the_collector_pauses_and_goes_on() -> None:
    with pause_collector():
        assert not gc.isenabled()

    assert gc.isenabled()


def test_it_goes_on_after_an_error() -> None:
    with pytest.raises(ImportError), pause_collector():
        raise ImportError

    assert gc.isenabled()


def test_who_has_no_collector_gets_none() -> None:
    gc.disable()
    try:
        with pause_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
