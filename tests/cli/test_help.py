"""Every command of `distill` explains itself on a terminal of 80 columns."""

from __future__ import annotations

import inspect
import re
from typing import get_args, get_type_hints

import pytest
from typer.models import ArgumentInfo, OptionInfo
from typer.testing import CliRunner

from distill_dagster.cli import COMMANDS, app


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_argument_and_option(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    text = re.sub(r"[\s│]+", " ", shown.output)
    hints = get_type_hints(COMMANDS[name], include_extras=True)
    for parameter in inspect.signature(COMMANDS[name]).parameters:
        info = next(part for part in get_args(hints[parameter]) if isinstance(part, ArgumentInfo | OptionInfo))
        assert info.help, f"{parameter} of {name} has no help text"
        assert info.help.split()[0] in text
        first_words = " ".join(info.help.replace("`", "").split()[:3])
        assert first_words in text, f"{parameter} of {name}: {first_words!r} is not shown"
