"""`curation.filters` of task.yaml: its settings, their validation, and the filters of a task in order."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)

from distill_dagster.config import CurationSpec, Task
from distill_dagster.config.base import SWITCH, ShortForm
from distill_dagster.core.errors import Problem
from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.curation.filters.base import Filter
from distill_dagster.curation.filters.catalogue import BUILT_IN_FILTERS, STEP_REASONS
from distill_dagster.curation.filters.custom import CustomFilterSpec
from distill_dagster.curation.scores import Scorer, bind_scorer
from distill_dagster.curation.task_view import TaskView
from distill_dagster.tasks.unknown_fields import declare_block
from distill_dagster.tasks.yaml_files import convert_validation_error, find_line, read_yaml

_BLOCK = ("curation", "filters")


class FilterThresholds(BaseModel):
    """The settings that are not a block of one filter. A change cuts the dataset again from stored scores."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_agreement: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="share of the samples that agree with the candidate"
    )
    min_confidence: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="probability of the candidate in its soft label"
    )
    max_confidence: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0, description="leaves out what the teacher is surer of"
    )
    min_words: Annotated[int, Field(ge=0)] = Field(default=1, description="words of a prompt")
    max_words: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="words of a prompt; by default 400 for the kinds classification, nli, math and tool_call, and no "
        "limit for the others",
    )
    min_judge: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="the judge's mean score, where 1 of 5 counts 0 and 5 of 5 counts 1"
    )
    min_teacher_agreement: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="share of several teachers that gave the candidate's answer"
    )
    target_label: Literal["keep_answer", "drop_disagreement"] = Field(
        default="keep_answer",
        description="what happens to a prompt that was written or imagined for another label than the answer",
    )
    preset: Literal["safe", "suited"] = Field(
        default="safe",
        description="safe: only the filters that need no score; suited: all filters that suit the kind of task",
    )
    own: tuple[CustomFilterSpec, ...] = Field(
        default=(), description="filters of your own, applied after the built-in ones"
    )

    @model_validator(mode="after")
    def _check_consistency(self) -> FilterThresholds:
        if self.min_confidence > self.max_confidence:
            raise ValueError("min_confidence is more than max_confidence")
        reasons = {built_in.reason for built_in in BUILT_IN_FILTERS} | set(STEP_REASONS)
        for spec in self.own:
            name = spec.build_filter().reason
            if name in reasons:
                raise ValueError(f"own: the name {name!r} is a duplicate, or a built-in reason")
            reasons.add(name)
        return self


def list_declarable_filters() -> dict[str, type[Filter]]:
    """The filters that have a block of their own in `filters:`, by name."""
    return {
        built_in.name: built_in
        for built_in in BUILT_IN_FILTERS
        if built_in.defaults.threshold is None and not built_in.defaults.always_on
    }


def _expand_shorthand(built_in: type[Filter]) -> BeforeValidator:
    """Turns `name: true`, `name: false` and a bare value into a mapping of the filter's fields."""

    def expand(value: Any) -> Any:
        if isinstance(value, bool):
            return {"enabled": value}
        if value is None or isinstance(value, dict | Filter) or built_in.defaults.bare_value is None:
            return value
        return {built_in.defaults.bare_value: value}

    return BeforeValidator(expand)


def _describe_shorthand(built_in: type[Filter]) -> ShortForm:
    """The values that `_expand_shorthand` accepts besides a mapping."""
    bare = built_in.defaults.bare_value
    if bare is None:
        return SWITCH
    value = TypeAdapter(built_in.model_fields[bare].rebuild_annotation()).json_schema()
    return ShortForm({"anyOf": [SWITCH.schema, *value.get("anyOf", [value])]})


if TYPE_CHECKING:

    class FilterSettings(FilterThresholds):
        """`curation.filters`: the thresholds, and one optional block for each declarable filter."""
else:
    FilterSettings = create_model(
        "FilterSettings",
        __base__=FilterThresholds,
        __doc__=FilterThresholds.__doc__,
        **{
            name: (
                Annotated[built_in | None, _expand_shorthand(built_in), _describe_shorthand(built_in)],
                Field(default=None, description=built_in.__doc__.splitlines()[0]),
            )
            for name, built_in in list_declarable_filters().items()
        },
    )


declare_block(CurationSpec, "filters", FilterSettings)


def select_filters(settings: FilterSettings, task: TaskView) -> list[Filter]:
    """The filters that are on for a task, in the order of application."""
    return [*_select_built_in(settings, task), *(spec.build_filter() for spec in settings.own)]


def _select_built_in(settings: FilterSettings, task: TaskView) -> list[Filter]:
    built = [_build_filter(built_in, settings, task) for built_in in BUILT_IN_FILTERS]
    return [each for each in built if each is not None and each.is_active()]


def _build_filter(built_in: type[Filter], settings: FilterSettings, task: TaskView) -> Filter | None:
    """A filter with its settings, and values that suit the kind of task for all others; None where it is off."""
    defaults = built_in.defaults
    suited = defaults.kinds.get(task.kind, {})
    if defaults.threshold is not None:
        value = getattr(settings, defaults.threshold)
        return built_in(**suited) if value is None else built_in(**{defaults.threshold: value})
    declared: Filter | None = None if defaults.always_on else getattr(settings, built_in.name)
    if declared is not None:
        unset = {name: value for name, value in suited.items() if name not in declared.model_fields_set}
        return declared.model_copy(update=unset)
    suits = task.kind in defaults.kinds and (task.reasoning or task.kind not in defaults.reasoning_kinds)
    if settings.preset == "suited" and suits:
        return built_in(**suited)
    return built_in() if defaults.on_by_default or defaults.always_on else None


def select_task_filters(task: Task) -> list[Filter]:
    """The filters of a task in the order of application.

    Raises:
        ValidationError: the block `curation.filters` is malformed; `find_filter_problems` names the line.
    """
    return select_filters(_parse_settings(to_canonical_json(task.curation.filters)), TaskView.from_task(task))


@lru_cache(maxsize=32)
def _parse_settings(block: str) -> FilterSettings:
    """The settings in a block, given as JSON. A stage needs them several times, and SQL of a task is parsed by DuckDB.

    Raises:
        ValidationError: the block is malformed.
    """
    return FilterSettings.model_validate(json.loads(block))


def collect_scorers(filters: list[Filter]) -> list[Scorer]:
    """The scorers that these filters need, each once, in the order of their first use."""
    return list({scorer.name: scorer for each in filters for scorer in each.list_scorers()}.values())


def collect_task_scorers(task: Task) -> list[Scorer]:
    """The scorers that the filters of a task need, each with the task's settings in its version."""
    view = TaskView.from_task(task)
    return [bind_scorer(scorer, view) for scorer in collect_scorers(select_task_filters(task))]


def list_parameters(each: Filter) -> dict[str, Any]:
    """The settings of a filter that are not empty, as JSON values."""
    values = each.model_dump(mode="json", exclude={"enabled"})
    return {name: value for name, value in values.items() if value not in (None, [], ())}


def list_filter_hash_fields(task: Task) -> list[dict[str, Any]]:
    """Everything that decides which rows the filters of a task drop. A setting at its default counts as if unset."""
    settings = _parse_settings(to_canonical_json(task.curation.filters))
    built_in = _select_built_in(settings, TaskView.from_task(task))
    return [
        *({"reason": each.reason} | each.model_dump(mode="json") for each in built_in),
        *(spec.hash_fields() for spec in settings.own),
    ]


def find_filter_problems(path: Path, task: Task) -> list[Problem]:
    """Everything that is wrong in the block `curation.filters` of the task.yaml at `path`."""
    try:
        settings = FilterSettings.model_validate(task.curation.filters)
    except ValidationError as error:
        tree = read_yaml(path, [])[1]
        return convert_validation_error(path, error, FilterSettings, lambda loc: find_line(tree, loc), _BLOCK)
    if settings.min_judge and (task.judge is None or task.judge.mode != "score"):
        name = (*_BLOCK, "min_judge")
        message = "min_judge needs a `judge` with `mode: score`."
        remedy = "Add the block `judge`, or remove min_judge."
        return [Problem(path, message, remedy, find_line(read_yaml(path, [])[1], name), ".".join(name))]
    return []
