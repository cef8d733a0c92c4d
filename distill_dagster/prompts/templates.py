"""Prompt templates: Jinja2 in its sandbox, built in or replaced by a file of the same name in the task folder."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from distill_dagster.errors import DistillError
from distill_dagster.hashing import content_hash

NAMES = ("classification_text", "classification_system", "classification_user")
VARIABLES = ("text", "examples", "labels", "instructions", "item")


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False)
    environment.filters["one_line"] = lambda text: " ".join(str(text).split())
    return environment


@lru_cache(maxsize=64)
def _compiled(source: str) -> Any:
    return _environment().from_string(source)


class Templates:
    """The templates of one task. `version` changes when, and only when, one of them changes."""

    variables: tuple[str, ...] = VARIABLES

    def __init__(self, own: dict[str, str]) -> None:
        self._sources = {name: own[name] if name in own else _built_in(name) for name in NAMES}
        self.version = content_hash(self._sources)[:12]

    def render(self, name: str, **values: Any) -> str:
        """One template with its values; the end of the text is trimmed.

        Raises:
            DistillError: the template uses an unknown variable or something that the sandbox forbids.
        """
        try:
            return str(_compiled(self._sources[name]).render(**values)).rstrip()
        except Exception as error:  # a user's expression may raise anything: ZeroDivisionError, OverflowError
            raise DistillError(
                f"templates/{name}.j2: {error}. A template may use {', '.join(self.variables)} and the filter one_line."
            ) from error


def _built_in(name: str) -> str:
    return resources.files("distill_dagster.prompts").joinpath("templates", f"{name}.j2").read_text("utf-8")


def problems(
    name: str, source: str, names: tuple[str, ...] = NAMES, variables: tuple[str, ...] = VARIABLES
) -> list[tuple[int | None, str, str]]:
    """What is wrong in a user's template, without rendering it: (line, message, remedy)."""
    if name not in names:
        return [(None, f"{name!r} is not the name of a template.", f"Use one of: {', '.join(names)}.")]
    if not source.strip():
        return [(None, "the template is empty.", "Write it, or remove the file to use the built-in one.")]
    try:
        _environment().from_string(source)  # parsing alone would not see an unknown filter
        unknown = sorted(meta.find_undeclared_variables(_environment().parse(source)) - set(variables))
    except TemplateSyntaxError as error:
        return [(error.lineno, f"{error.message}.", "Mend the Jinja2 syntax.")]
    return [
        (_line_of(source, name), f"{name!r} is not a variable of templates.", f"Use one of: {', '.join(variables)}.")
        for name in unknown
    ]


def _line_of(source: str, name: str) -> int | None:
    """The first line that has a word, 1-based."""
    lines = source.splitlines()
    return next((n for n, line in enumerate(lines, 1) if re.search(rf"\b{re.escape(name)}\b", line)), None)
