"""Prompt templates: sandboxed Jinja2, built in or replaced by a file of the same name in the task folder."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from distill_dagster.config import LABEL_KINDS, Task
from distill_dagster.core.errors import DistillError
from distill_dagster.core.hashing import hash_content
from distill_dagster.tasks import TaskFolder

TEMPLATE_PARTS = ("text", "system", "user")
"""The parts of a prompt: for the text API; for the chat API its system turn, and the user turns."""
CLASSIFICATION_TEMPLATES = tuple(f"classification_{part}" for part in TEMPLATE_PARTS)
IMAGINE_TEMPLATES = ("imagine_grid", "imagine_self_instruct", "imagine_evolve")
JUDGE_TEMPLATES = ("judge_score", "judge_best_of")
AUXILIARY_TEMPLATES = (*IMAGINE_TEMPLATES, *JUDGE_TEMPLATES)
"""Templates that ask for something other than answers. Editing one does not invalidate any answer."""

ANSWER_VARIABLES = ("text", "examples", "labels", "instructions", "item", "format", "tools", "reasoning")
IMAGINE_VARIABLES = (
    *("task", "description", "item", "count", "label", "labels", "axes", "examples", "parent", "evolution"),
    "structured",
)
JUDGE_VARIABLES = (
    *("task", "instructions", "item", "labels", "text", "answer", "reasoning", "options", "rubric"),
    "structured",
)


def build_answer_templates(folder: TaskFolder, task: Task) -> Templates:
    """The templates that ask the teacher of `task` for answers, with those of the folder in place of built-in ones."""
    names = get_template_names(task.kind, task.reasoning, task.teacher.has_stated_soft_labels)
    return Templates(folder.read_templates(), names)


def get_template_names(kind: str, reasoning: bool, stated: bool = False) -> tuple[str, ...]:
    """The templates that ask for answers of a kind, one for each of `TEMPLATE_PARTS`.

    Labels with reasoning have templates of their own, since the label comes after the reasoning. So have labels with
    `stated` probabilities or ranks, which only the chat API is asked for.
    """
    if stated:
        return f"{kind}_stated_system", f"{kind}_stated_user"
    prefix = f"{kind}_reasoned" if reasoning and kind in LABEL_KINDS else kind
    return tuple(f"{prefix}_{part}" for part in TEMPLATE_PARTS)


def get_variables(name: str) -> tuple[str, ...]:
    """The variables that the template of that name may use."""
    if name in IMAGINE_TEMPLATES:
        return IMAGINE_VARIABLES
    return JUDGE_VARIABLES if name in JUDGE_TEMPLATES else ANSWER_VARIABLES


def select_templates(own: dict[str, str], names: tuple[str, ...]) -> dict[str, str]:
    """The user's own templates that have one of these names."""
    return {name: text for name, text in own.items() if name in names}


def select_answer_templates(own: dict[str, str]) -> dict[str, str]:
    """The user's own templates that ask for answers."""
    return {name: text for name, text in own.items() if name not in AUXILIARY_TEMPLATES}


def fold_whitespace(text: object) -> str:
    """The text with white space folded to single spaces: the template filter `one_line`."""
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

    A macro, a filter block or a recursive loop could use the printed text again, so none may occur.
    """
    try:
        tree = _make_environment().parse(source)
    except TemplateSyntaxError:  # `render` raises the error
        return False
    for statement in tree.find_all(nodes.Stmt):
        if not isinstance(statement, nodes.Output | nodes.If | nodes.For | nodes.Assign):
            return False
        if isinstance(statement, nodes.For) and statement.recursive:
            return False
    printed = [_strip_one_line(part) for output in tree.find_all(nodes.Output) for part in output.nodes]
    return all(any(name is part for part in printed) for name in tree.find_all(nodes.Name) if name.name == variable)


def _strip_one_line(part: nodes.Expr) -> nodes.Expr | None:
    """The expression that the filter `one_line` is applied to; any other expression unchanged."""
    if isinstance(part, nodes.Filter) and part.name == "one_line" and not (part.args or part.kwargs):
        return part.node
    return part


class Templates:
    """Some of the templates of one task, by default those of a classification.

    Attributes:
        names: the names of these templates.
        version: 12 hex digits that change when, and only when, one of these templates changes.
    """

    def __init__(self, own: dict[str, str], names: tuple[str, ...] = CLASSIFICATION_TEMPLATES) -> None:
        """`own` are the task's own templates by name; the others are built in."""
        self.names = names
        self._sources = {name: own[name] if name in own else read_built_in_template(name) for name in names}
        self.version = hash_content(self._sources)[:12]

    def render_part(self, part: str, **values: Any) -> str:
        """Render the template of one of `TEMPLATE_PARTS`, as `render` does."""
        return self.render(self._find_name(part), **values)

    def uses_variable(self, part: str, variable: str) -> bool:
        """Whether the template of a part reads a variable. Without `text` it is the same for each prompt."""
        return variable in _find_variables(self._sources[self._find_name(part)])

    def only_prints(self, part: str, variable: str) -> bool:
        """Whether the template of a part does nothing with a variable but print it, or does not read it at all."""
        return _is_only_printed(self._sources[self._find_name(part)], variable)

    def render(self, name: str, **values: Any) -> str:
        """Render one template. White space at the end is removed.

        Raises:
            DistillError: the template uses an unknown variable, or something that the sandbox forbids.
        """
        try:
            return str(_compile_template(self._sources[name]).render(**values)).rstrip()
        except Exception as error:  # an expression may raise anything, such as ZeroDivisionError or OverflowError
            raise DistillError(
                f"templates/{name}.j2: {error}. A template may use {', '.join(get_variables(name))} and the filter "
                f"one_line."
            ) from error

    def _find_name(self, part: str) -> str:
        return next(name for name in self.names if name.endswith(f"_{part}"))


def read_built_in_template(name: str) -> str:
    """The built-in template of that name, or else the one that its group of answers shares for this part."""
    folder = resources.files("distill_dagster.prompts").joinpath("templates")
    own = folder.joinpath(f"{name}.j2")
    group = "stated" if "_stated_" in name else "written"
    shared = folder.joinpath(f"{group}_{name.rpartition('_')[2]}.j2")
    return (own if own.is_file() else shared).read_text("utf-8")


def find_template_problems(
    name: str, source: str, names: tuple[str, ...] = CLASSIFICATION_TEMPLATES
) -> list[tuple[int | None, str, str]]:
    """The problems in a user's template, found without rendering it: line, message and remedy of each.

    Args:
        names: the names that a template of the task may have.
    """
    if name not in names:
        return [(None, f"{name!r} is not the name of a template.", f"Use one of: {', '.join(names)}.")]
    if not source.strip():
        return [(None, "the template is empty.", "Write it, or remove the file to use the built-in one.")]
    variables = get_variables(name)
    try:
        _make_environment().from_string(source)  # parsing alone would not find an unknown filter
        unknown = sorted(meta.find_undeclared_variables(_make_environment().parse(source)) - set(variables))
    except TemplateSyntaxError as error:
        return [(error.lineno, f"{error.message}.", "Fix the Jinja2 syntax.")]
    return [
        (_find_line(source, word), f"{word!r} is not a variable of templates.", f"Use one of: {', '.join(variables)}.")
        for word in unknown
    ]


def _find_line(source: str, word: str) -> int | None:
    """The number of the first line that contains a word, 1-based."""
    lines = source.splitlines()
    return next((n for n, line in enumerate(lines, 1) if re.search(rf"\b{re.escape(word)}\b", line)), None)
