"""Templates that ask for something else than answers: for new prompts, and for a judge's verdict."""

from __future__ import annotations

from distill_dagster.core.hashing import hash_content
from distill_dagster.prompts import templates
from distill_dagster.prompts.templates import Templates

IMAGINE_TEMPLATES = ("imagine_grid", "imagine_self_instruct", "imagine_evolve")
IMAGINE_VARIABLES = (
    *("task", "description", "item", "count", "label", "labels", "axes", "examples", "parent", "evolution"),
    "structured",
)
JUDGE_TEMPLATES = ("judge_score", "judge_best_of")
JUDGE_VARIABLES = (
    *("task", "instructions", "item", "labels", "text", "answer", "reasoning", "options", "rubric"),
    "structured",
)
AUXILIARY_TEMPLATES = (*IMAGINE_TEMPLATES, *JUDGE_TEMPLATES)
"""No part of the settings of the teacher who answers: changing one of them asks for no answer again."""


class AuxiliaryTemplates(Templates):
    """The templates of one task with these names, `IMAGINE` or `JUDGE`."""

    def __init__(self, own: dict[str, str], names: tuple[str, ...]) -> None:
        self.names = names
        self._sources = {name: own[name] if name in own else templates._read_built_in(name) for name in names}
        self.version = hash_content(self._sources)[:12]
        self.variables = IMAGINE_VARIABLES if names == IMAGINE_TEMPLATES else JUDGE_VARIABLES


def select_templates(own: dict[str, str], names: tuple[str, ...]) -> dict[str, str]:
    """Of the user's own templates those with one of these names."""
    return {name: text for name, text in own.items() if name in names}


def select_answer_templates(own: dict[str, str]) -> dict[str, str]:
    """Of the user's own templates those of the teacher who answers."""
    return {name: text for name, text in own.items() if name not in AUXILIARY_TEMPLATES}


def find_auxiliary_template_problems(name: str, source: str) -> list[tuple[int | None, str, str]]:
    """As `templates.problems`, for a name of `MORE`."""
    variables = IMAGINE_VARIABLES if name in IMAGINE_TEMPLATES else JUDGE_VARIABLES
    return templates.find_template_problems(name, source, AUXILIARY_TEMPLATES, variables)
