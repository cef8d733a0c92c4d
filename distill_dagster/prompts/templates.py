"""Prompt templates: Jinja2 in its sandbox, built in or replaced by a file of the same name in the task folder."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError
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

    def __init__(self, own: dict[str, str]) -> None:
        self._sources = {name: own.get(name) or _built_in(name) for name in NAMES}
        self.version = content_hash(self._sources)[:12]

    def render(self, name: str, **values: Any) -> str:
        """One template with its values; the end of the text is trimmed.

        Raises:
            DistillError: the template uses an unknown variable or something that the sandbox forbids.
        """
        try:
            return str(_compiled(self._sources[name]).render(**values)).rstrip()
        except TemplateError as error:
            raise DistillError(
                f"templates/{name}.j2: {error}. A template may use {', '.join(VARIABLES)} and the filter one_line."
            ) from error


def _built_in(name: str) -> str:
    return resources.files("distill_dagster.prompts").joinpath("templates", f"{name}.j2").read_text("utf-8")


def problems(name: str, source: str) -> list[tuple[int | None, str, str]]:
    """What is wrong in a user's template, without rendering it: (line, message, remedy)."""
    if name not in NAMES:
        return [(None, f"{name!r} is not the name of a template.", f"Use one of: {', '.join(NAMES)}.")]
    try:
        _environment().parse(source)
    except TemplateSyntaxError as error:
        return [(error.lineno, f"{error.message}.", "Mend the Jinja2 syntax.")]
    return []
