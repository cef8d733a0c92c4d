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
IMAGINE = ("imagine_grid", "imagine_self_instruct", "imagine_evolve")
IMAGINE_VARIABLES = (
    *("task", "description", "item", "count", "label", "labels", "axes", "examples", "parent", "evolution"),
    "structured",
)
JUDGE = ("judge_score", "judge_best_of")
JUDGE_VARIABLES = (
    *("task", "instructions", "item", "labels", "text", "answer", "reasoning", "options", "rubric"),
    "structured",
)
_KNOWN = {
    **dict.fromkeys(NAMES, VARIABLES),
    **dict.fromkeys(IMAGINE, IMAGINE_VARIABLES),
    **dict.fromkeys(JUDGE, JUDGE_VARIABLES),
}


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False)
    environment.filters["one_line"] = lambda text: " ".join(str(text).split())
    return environment


@lru_cache(maxsize=64)
def _compiled(source: str) -> Any:
    return _environment().from_string(source)


class Templates:
    """The templates of one task. `version` changes when, and only when, one of them changes."""

    def __init__(self, own: dict[str, str], names: tuple[str, ...] = NAMES) -> None:
        """`names`: those that answer, by default; `IMAGINE` or `JUDGE`."""
        self._sources = {name: own[name] if name in own else _built_in(name) for name in names}
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
                f"templates/{name}.j2: {error}. A template may use {', '.join(_KNOWN[name])} and the filter one_line."
            ) from error


def own_templates(own: dict[str, str], names: tuple[str, ...]) -> dict[str, str]:
    """Of the user's own templates those with one of these names."""
    return {name: text for name, text in own.items() if name in names}


def _built_in(name: str) -> str:
    return resources.files("distill_dagster.prompts").joinpath("templates", f"{name}.j2").read_text("utf-8")


def problems(name: str, source: str) -> list[tuple[int | None, str, str]]:
    """What is wrong in a user's template, without rendering it: (line, message, remedy)."""
    if name not in _KNOWN:
        return [(None, f"{name!r} is not the name of a template.", f"Use one of: {', '.join(_KNOWN)}.")]
    if not source.strip():
        return [(None, "the template is empty.", "Write it, or remove the file to use the built-in one.")]
    try:
        _environment().from_string(source)  # parsing alone would not see an unknown filter
        unknown = sorted(meta.find_undeclared_variables(_environment().parse(source)) - set(_KNOWN[name]))
    except TemplateSyntaxError as error:
        return [(error.lineno, f"{error.message}.", "Mend the Jinja2 syntax.")]
    return [
        (_line_of(source, word), f"{word!r} is not a variable of templates.", f"Use one of: {', '.join(_KNOWN[name])}.")
        for word in unknown
    ]


def _line_of(source: str, name: str) -> int | None:
    """The first line that has a word, 1-based."""
    lines = source.splitlines()
    return next((n for n, line in enumerate(lines, 1) if re.search(rf"\b{re.escape(name)}\b", line)), None)
