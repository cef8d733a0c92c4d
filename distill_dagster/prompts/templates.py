"""Prompt templates: Jinja2 in its sandbox, built in or replaced by a file of the same name in the task folder."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from distill_dagster.config import LABEL_KINDS
from distill_dagster.core.errors import DistillError
from distill_dagster.core.hashing import hash_content

TEMPLATE_PARTS = ("text", "system", "user")
"""For the text API; for the chat API its system turn, and the user's turns of examples and prompt."""
CLASSIFICATION_TEMPLATES = tuple(f"classification_{part}" for part in TEMPLATE_PARTS)
ANSWER_VARIABLES = ("text", "examples", "labels", "instructions", "item", "format", "tools", "reasoning")


def get_template_names(kind: str, reasoning: bool) -> tuple[str, ...]:
    """The templates of a kind. With reasoning a label is written behind it, which wants templates of its own."""
    prefix = f"{kind}_reasoned" if reasoning and kind in LABEL_KINDS else kind
    return tuple(f"{prefix}_{part}" for part in TEMPLATE_PARTS)


def fold_whitespace(text: object) -> str:
    """White space folded to single spaces: the filter of that name."""
    return " ".join(str(text).split())


def _make_environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False)
    environment.filters["one_line"] = fold_whitespace
    return environment


@lru_cache(maxsize=64)
def _compile_template(source: str) -> Any:
    return _make_environment().from_string(source)


@lru_cache(maxsize=64)
def _find_variables(source: str) -> set[str]:
    return meta.find_undeclared_variables(_make_environment().parse(source))


@lru_cache(maxsize=64)
def _is_only_printed(source: str, variable: str) -> bool:
    """Whether a template does nothing with a variable but print it, as it is or with `one_line`.

    What it printed must not be taken up again either, as in a macro, a filter block or a recursive loop.
    """
    try:
        tree = _make_environment().parse(source)
    except TemplateSyntaxError:  # `render` says what is wrong
        return False
    for statement in tree.find_all(nodes.Stmt):
        if not isinstance(statement, nodes.Output | nodes.If | nodes.For | nodes.Assign):
            return False
        if isinstance(statement, nodes.For) and statement.recursive:
            return False
    printed = [_strip_one_line(part) for output in tree.find_all(nodes.Output) for part in output.nodes]
    return all(any(name is part for part in printed) for name in tree.find_all(nodes.Name) if name.name == variable)


def _strip_one_line(part: nodes.Expr) -> nodes.Expr | None:
    """What the filter `one_line` is applied to; any other expression as it is."""
    if isinstance(part, nodes.Filter) and part.name == "one_line" and not (part.args or part.kwargs):
        return part.node
    return part


class Templates:
    """The templates of one task. `version` changes when, and only when, one of them changes."""

    variables: tuple[str, ...] = ANSWER_VARIABLES

    def __init__(self, own: dict[str, str], kind: str = "classification", reasoning: bool = False) -> None:
        """`own` are the task's own templates by name; what it has none for is built in."""
        self.names = get_template_names(kind, reasoning)
        self._sources = {name: own[name] if name in own else _read_built_in(name) for name in self.names}
        self.version = hash_content(self._sources)[:12]

    def part(self, part: str, **values: Any) -> str:
        """The template of a part, as `render`."""
        return self.render(self.names[TEMPLATE_PARTS.index(part)], **values)

    def uses(self, part: str, variable: str) -> bool:
        """Whether the template of a part reads a variable; without `text` it says the same for every prompt."""
        return variable in _find_variables(self._sources[self.names[TEMPLATE_PARTS.index(part)]])

    def prints(self, part: str, variable: str) -> bool:
        """Whether the template of a part does nothing with a variable but print it, or does not read it at all."""
        return _is_only_printed(self._sources[self.names[TEMPLATE_PARTS.index(part)]], variable)

    def render(self, name: str, **values: Any) -> str:
        """One template with its values; the end of the text is trimmed.

        Raises:
            DistillError: the template uses an unknown variable or something that the sandbox forbids.
        """
        try:
            return str(_compile_template(self._sources[name]).render(**values)).rstrip()
        except Exception as error:  # a user's expression may raise anything: ZeroDivisionError, OverflowError
            raise DistillError(
                f"templates/{name}.j2: {error}. A template may use {', '.join(self.variables)} and the filter one_line."
            ) from error


def _read_built_in(name: str) -> str:
    """The template of that name, else the one that all written answers share for this part."""
    folder = resources.files("distill_dagster.prompts").joinpath("templates")
    found = folder.joinpath(f"{name}.j2")
    shared = folder.joinpath(f"written_{name.rpartition('_')[2]}.j2")
    return (found if found.is_file() else shared).read_text("utf-8")


def find_template_problems(
    name: str,
    source: str,
    names: tuple[str, ...] = CLASSIFICATION_TEMPLATES,
    variables: tuple[str, ...] = ANSWER_VARIABLES,
) -> list[tuple[int | None, str, str]]:
    """What is wrong in a user's template, without rendering it: (line, message, remedy)."""
    if name not in names:
        return [(None, f"{name!r} is not the name of a template.", f"Use one of: {', '.join(names)}.")]
    if not source.strip():
        return [(None, "the template is empty.", "Write it, or remove the file to use the built-in one.")]
    try:
        _make_environment().from_string(source)  # parsing alone would not see an unknown filter
        unknown = sorted(meta.find_undeclared_variables(_make_environment().parse(source)) - set(variables))
    except TemplateSyntaxError as error:
        return [(error.lineno, f"{error.message}.", "Mend the Jinja2 syntax.")]
    return [
        (_find_line(source, name), f"{name!r} is not a variable of templates.", f"Use one of: {', '.join(variables)}.")
        for name in unknown
    ]


def _find_line(source: str, name: str) -> int | None:
    """The first line that has a word, 1-based."""
    lines = source.splitlines()
    return next((n for n, line in enumerate(lines, 1) if re.search(rf"\b{re.escape(name)}\b", line)), None)
