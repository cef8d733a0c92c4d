"""The models of a task folder: labelled rows, seed prompts and slices."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from distill_dagster.config.base import ShortForm
from distill_dagster.core.hashing import hash_content, to_canonical_json
from distill_dagster.core.text import normalize_text
from distill_dagster.tasks.accepted import AcceptedPrompt
from distill_dagster.tasks.imagined import ImaginedPrompt, ImagineHistory
from distill_dagster.tasks.turns import PROMPT_TEXT, Turn

_HASHED_OF_SHIPPED = {"text", "method", "axes", "parent_prompt_id", "target_label"}
"""The fields of a shipped prompt that reach the table of prompts and are not only a note."""


def _require_text_or_messages(schema: dict[str, Any]) -> None:
    """Change a JSON Schema: the text of a conversation need not be written."""
    schema["required"] = [name for name in schema.get("required", []) if name != "text"]
    schema["anyOf"] = [{"required": ["text"]}, {"required": ["messages"]}]


class PromptText(BaseModel):
    """A prompt: one text, or the turns of a conversation. The text of a conversation is that of its user turns."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_require_text_or_messages)

    text: PROMPT_TEXT = Field(description="the prompt; of a conversation, by default the text of its user turns")
    messages: Annotated[list[Turn], Field(min_length=1)] | None = Field(
        default=None, description="kind conversation: the turns so far; the last one is the user's"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_text(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("messages"), list) or "text" in value:
            return value
        turns = [t for t in value["messages"] if isinstance(t, dict) and t.get("role") == "user"]
        return value | {"text": "\n".join(str(t.get("content") or "") for t in turns)}

    @field_validator("messages")
    @classmethod
    def _check_turns(cls, value: list[Turn] | None) -> list[Turn] | None:
        if value is not None:
            roles = [turn.role for turn in value]
            if roles[-1] != "user" or "system" in roles[1:]:
                raise ValueError("the last turn must be the user's, and only the first turn may be a system turn")
        return value

    def get_hashed_fields(self) -> dict[str, Any]:
        """The fields that a data version covers: all but the source."""
        return self.model_dump(exclude={"source"})


class LabelledRow(PromptText):
    """One line of a JSONL file of a task: a prompt and, if a person answered it, the label or answer.

    Kinds without labels have an `answer`: any JSON value, in the canonical form of the kind once the row is read.
    """

    id: Annotated[str, Field(min_length=1, max_length=200), ShortForm({"type": "integer"})] = Field(
        description="a name that no other row of the file has"
    )
    label: str | None = Field(default=None, description="the right label, for kinds with labels")
    answer: Any = Field(
        default=None, description="the right answer, for kinds without labels; docs/kinds.md shows its form"
    )
    reasoning: PROMPT_TEXT | None = Field(
        default=None, description="how a person finds the answer; examples of a task with `reasoning: true` need it"
    )
    slice: str | None = Field(
        default=None, description="the slice that the row belongs to, for the report's scores by slice"
    )
    axes: dict[str, str] = Field(default={}, description="values of axes of `imagine`, by name")
    source: str | None = Field(default=None, description="where the row comes from; only a note")

    @field_validator("id", mode="before")
    @classmethod
    def _convert_number(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @property
    def answer_json(self) -> str:
        """The label or answer as canonical JSON text."""
        return to_canonical_json(self.answer if self.answer is not None else self.label)


class Seed(PromptText):
    """One seed prompt of a slice: a plain string in the YAML, or a mapping with these fields."""

    id: str | None = Field(default=None, description="a name that no other seed of the slice has")
    target_label: str | None = Field(default=None, description="the label that the prompt was written for")
    reference: Any = Field(default=None, description="the right answer, if it is known")
    axes: dict[str, str] = Field(default={}, description="values of axes of `imagine`, by name")
    source: str | None = Field(default=None, description="where the prompt comes from; only a note")


class SliceFile(BaseModel):
    """The content of one `slices/<slice>.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: Annotated[str, Field(min_length=1)] = Field(
        description="where the prompts of the slice come from; the model that imagines prompts reads it"
    )
    seeds: list[Annotated[Seed, ShortForm({"type": "string"})]] = Field(
        default=[],
        description="the prompts: each a text, or a mapping of fields; a slice with imported prompts needs none",
    )
    target: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="how many prompts the slice should have; `imagine` adds the missing ones"
    )
    refusal: Literal["wanted"] | None = Field(
        default=None, description="a safety slice: a refusal is the only right answer"
    )

    @field_validator("seeds", mode="before")
    @classmethod
    def _expand_strings(cls, value: Any) -> Any:
        if value is None:  # `seeds:` with nothing after it
            return []
        return [{"text": s} if isinstance(s, str) else s for s in value] if isinstance(value, list) else value


class Slice(SliceFile):
    """A slice: its file, the prompts that came through the inbox or an import, and those that a model imagined.

    `shipped` are the imagined prompts in the task folder, `imagination` those that the task's teacher imagined here.
    """

    accepted: tuple[AcceptedPrompt, ...] = ()
    shipped: tuple[ImaginedPrompt, ...] = ()
    imagination: ImagineHistory = ImagineHistory()

    def with_imagined(self, imagination: ImagineHistory) -> Slice:
        """This slice with other imagined prompts."""
        return self.model_copy(update={"imagination": imagination})

    def compute_content_version(self) -> str:
        """Hash of the parsed content: white space, comments and the order of keys and prompts do not count."""
        value = self.model_dump(include={"description", "target", "refusal"})
        value["seeds"] = sorted((seed.get_hashed_fields() for seed in self.seeds), key=hash_content)
        value["accepted"] = sorted({prompt.content for prompt in self.accepted})
        if self.shipped:
            shipped = [prompt.model_dump(include=_HASHED_OF_SHIPPED) for prompt in self.shipped]
            value["shipped"] = sorted(shipped, key=hash_content)
        # Not the imagined prompts: the stage that imagines them would never be fresh.
        value["generation"] = self.imagination.generation
        return hash_content(value)


def collect_held_out_keys(golden: list[LabelledRow], dev: list[LabelledRow]) -> set[str]:
    """Normalized texts of golden and dev rows, which must not be used for training."""
    return {normalize_text(row.text) for row in [*golden, *dev]}
