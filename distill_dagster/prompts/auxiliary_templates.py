"""Templates that ask for something else than answers: for new prompts, and for a judge's verdict."""

from __future__ import annotations

from distill_dagster.core.hashing import content_hash
from distill_dagster.prompts import templates
from distill_dagster.prompts.templates import Templates

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
MORE = (*IMAGINE, *JUDGE)
"""No part of the settings of the teacher who answers: changing one of them asks for no answer again."""


class MoreTemplates(Templates):
    """The templates of one task with these names, `IMAGINE` or `JUDGE`."""

    def __init__(self, own: dict[str, str], names: tuple[str, ...]) -> None:
        self.names = names
        self._sources = {name: own[name] if name in own else templates._built_in(name) for name in names}
        self.version = content_hash(self._sources)[:12]
        self.variables = IMAGINE_VARIABLES if names == IMAGINE else JUDGE_VARIABLES


def own_templates(own: dict[str, str], names: tuple[str, ...]) -> dict[str, str]:
    """Of the user's own templates those with one of these names."""
    return {name: text for name, text in own.items() if name in names}


def answering(own: dict[str, str]) -> dict[str, str]:
    """Of the user's own templates those of the teacher who answers."""
    return {name: text for name, text in own.items() if name not in MORE}


def problems(name: str, source: str) -> list[tuple[int | None, str, str]]:
    """As `templates.problems`, for a name of `MORE`."""
    variables = IMAGINE_VARIABLES if name in IMAGINE else JUDGE_VARIABLES
    return templates.problems(name, source, MORE, variables)
