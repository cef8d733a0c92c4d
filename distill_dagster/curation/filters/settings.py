"""`curation.filters` of task.yaml: its settings, their validation, and the filters of a task in order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model, model_validator

from distill_dagster.config import Task
from distill_dagster.core.errors import Problem
from distill_dagster.curation.filters import agreement, answers, classified, lengths, private, prose, reasoning
from distill_dagster.curation.filters.base import Filter
from distill_dagster.curation.filters.own import CustomFilterSpec
from distill_dagster.curation.scores import Scorer, bind_scorer
from distill_dagster.curation.task_view import TaskView
from distill_dagster.tasks.yaml_files import convert_validation_error, find_line, read_yaml

BUILT_IN_FILTERS: tuple[type[Filter], ...] = (
    answers.Truncated,
    answers.Refused,
    answers.NoAnswer,
    answers.InvalidAnswer,
    answers.InvalidLabel,
    lengths.TooShort,
    lengths.TooLong,
    lengths.ReasoningLength,
    lengths.AnswerLength,
    lengths.CompletionTokens,
    answers.Boilerplate,
    answers.Echo,
    prose.Language,
    prose.Repetition,
    prose.Prose,
    reasoning.AnswerFirst,
    reasoning.Contradiction,
    reasoning.Arithmetic,
    agreement.ReferenceMismatch,
    agreement.LowAgreement,
    agreement.LowConfidence,
    agreement.HighConfidence,
    agreement.TeachersDisagree,
    agreement.LowJudgeScore,
    agreement.TargetLabelMismatch,
    private.Secrets,
    private.Pii,
    classified.Toxicity,
    classified.Injection,
)
"""In the order of application: a row that several would drop names the first of them. One's own come behind these."""
STEP_REASONS = {
    "contaminated": "The text is that of a golden or dev row, nearly so, or one holds most of the other.",
    "duplicate": "The normalized text is that of another row, which is kept.",
    "near_duplicate": "Most of its word shingles are those of another row, which is kept.",
    "semantic_duplicate": "Its embedding is close to that of another row, which is kept.",
    "over_cap": "A cap of `balance` is reached by rows that come before it.",
}
"""What follows the filters and looks at more than one row."""
_BLOCK = ("curation", "filters")


class FilterThresholds(BaseModel):
    """Thresholds of filtered_dataset: changing one re-cuts from stored scores and asks no teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_agreement: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="share of the samples that agree with the candidate"
    )
    min_confidence: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="probability of the candidate in its soft label"
    )
    max_confidence: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0, description="with min_confidence a band: what the teacher is surer of is left out"
    )
    min_words: Annotated[int, Field(ge=0)] = 1
    max_words: Annotated[int, Field(ge=1)] = 400
    min_judge: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="the judge's mean score, where 1 of 5 counts 0 and 5 of 5 counts 1"
    )
    min_teacher_agreement: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="share of the teachers that gave the candidate's answer, where several answered"
    )
    target_label: Literal["keep_answer", "drop_disagreement"] = Field(
        default="keep_answer", description="of a prompt that was written or imagined for another label than the answer"
    )
    preset: Literal["safe", "suited"] = Field(
        default="safe", description="safe: only what needs no score; suited: all that suits the kind of task"
    )
    own: tuple[CustomFilterSpec, ...] = Field(default=(), description="filters of one's own, behind the built-in ones")

    @model_validator(mode="after")
    def _consistent(self) -> FilterThresholds:
        if self.min_confidence > self.max_confidence:
            raise ValueError("min_confidence is more than max_confidence")
        reasons = {one.reason for one in BUILT_IN_FILTERS} | set(STEP_REASONS)
        for one in self.own:
            name = one.filter().drop_reason
            if name in reasons:
                raise ValueError(f"own: the name {name!r} stands twice, or is a built-in reason")
            reasons.add(name)
        return self


def list_declarable_filters() -> dict[str, type[Filter]]:
    """The filters that have a block of their own in `filters:`, by name."""
    return {one.name: one for one in BUILT_IN_FILTERS if not one.keys and not one.essential}


def _expand_shorthand(one: type[Filter]) -> BeforeValidator:
    """`name: true`, `name: false` and a bare value, as a mapping of the filter's fields."""

    def mapping(value: Any) -> Any:
        if isinstance(value, bool):
            return {"enabled": value}
        if value is None or isinstance(value, dict | Filter) or one.short is None:
            return value
        return {one.short: value}

    return BeforeValidator(mapping)


if TYPE_CHECKING:

    class FilterSettings(FilterThresholds):
        """As it is made below: with one optional block for each filter."""
else:
    FilterSettings = create_model(
        "Filters",
        __base__=FilterThresholds,
        __doc__=FilterThresholds.__doc__,
        **{
            name: (
                Annotated[one | None, _expand_shorthand(one)],
                Field(default=None, description=one.__doc__.splitlines()[0]),
            )
            for name, one in list_declarable_filters().items()
        },
    )


def select_filters(filters: FilterSettings, about: TaskView) -> list[Filter]:
    """The filters that are on for a task, in the order in which they are applied."""
    return [*_select_built_in(filters, about), *(one.filter() for one in filters.own)]


def _select_built_in(filters: FilterSettings, about: TaskView) -> list[Filter]:
    out: list[Filter] = []
    for one in BUILT_IN_FILTERS:
        given = None if one.keys or one.essential else getattr(filters, one.name)
        suits = about.kind in one.suits and (about.reasoning or about.kind not in one.reasoned)
        if one.keys:
            made = one(**{field: getattr(filters, key) for key, field in one.keys.items()})
        elif given is not None:
            made = given.suited_to(about.kind)
        elif filters.preset == "suited" and suits:
            made = one.for_kind(about.kind)
        elif one.by_default or one.essential:
            made = one()
        else:
            continue
        out += [made] if made.active() else []
    return out


def select_task_filters(task: Task) -> list[Filter]:
    """The filters of a task in the order in which they are applied.

    Raises:
        ValidationError: the block `curation.filters` is malformed; `find_filter_problems` names the line.
    """
    return select_filters(FilterSettings.model_validate(task.curation.filters), TaskView.from_task(task))


def collect_task_scorers(task: Task) -> list[Scorer]:
    """The scorers that the filters of a task need, each with the task's settings in its version."""
    about = TaskView.from_task(task)
    return [bind_scorer(scorer, about) for scorer in collect_scorers(select_task_filters(task))]


def list_filter_hash_fields(task: Task) -> list[dict[str, Any]]:
    """Everything that decides which rows the filters of a task drop. A setting at its default counts as if unset."""
    settings = FilterSettings.model_validate(task.curation.filters)
    built_in = _select_built_in(settings, TaskView.from_task(task))
    return [*(one.hash_fields() for one in built_in), *(one.hash_fields() for one in settings.own)]


def find_filter_problems(path: Path, task: Task) -> list[Problem]:
    """Everything that is wrong in the block `curation.filters` of the task.yaml at `path`."""
    try:
        settings = FilterSettings.model_validate(task.curation.filters)
    except ValidationError as error:
        tree = read_yaml(path, [])[1]
        return convert_validation_error(path, error, lambda location: find_line(tree, location), _BLOCK)
    if settings.min_judge and (task.judge is None or task.judge.mode != "score"):
        name = (*_BLOCK, "min_judge")
        message = "min_judge needs a `judge` with `mode: score`."
        remedy = "Add the block `judge`, or remove min_judge."
        return [Problem(path, message, remedy, find_line(read_yaml(path, [])[1], name), ".".join(name))]
    return []


def collect_scorers(filters: list[Filter]) -> list[Scorer]:
    """The scorers that these filters need, each once, in the order of their first use."""
    found = {one.name: one for each in filters for one in each.scorers()}
    return list(found.values())
