"""The models of a task folder: labelled rows, seed prompts and slices."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from distill_dagster.core.hashing import hash_content, to_canonical_json
from distill_dagster.core.text import normalize_text
from distill_dagster.tasks.accepted import AcceptedPrompt
from distill_dagster.tasks.imagined import ImagineHistory

_TEXT = Annotated[str, Field(min_length=1, pattern=r"\S")]


class Turn(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: _TEXT


class PromptText(BaseModel):
    """A prompt: one text, or the turns of a conversation. The text of a conversation is that of its user turns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: _TEXT
    messages: Annotated[list[Turn], Field(min_length=1)] | None = None

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

    id: Annotated[str, Field(min_length=1, max_length=200)]
    label: str | None = None
    answer: Any = None
    reasoning: _TEXT | None = None
    slice: str | None = None
    axes: dict[str, str] = {}
    source: str | None = None

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

    id: str | None = None
    target_label: str | None = None
    reference: Any = None
    axes: dict[str, str] = {}
    source: str | None = None


class SliceFile(BaseModel):
    """The content of one `slices/<slice>.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: Annotated[str, Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    target: Annotated[int, Field(ge=1)] | None = None
    refusal: Literal["wanted"] | None = Field(
        default=None, description="a safety slice: a refusal is the only right answer"
    )

    @field_validator("seeds", mode="before")
    @classmethod
    def _expand_strings(cls, value: Any) -> Any:
        return [{"text": s} if isinstance(s, str) else s for s in value] if isinstance(value, list) else value


class Slice(SliceFile):
    """A slice: its file, the prompts that came through the inbox or an import, and those that a teacher imagined."""

    accepted: tuple[AcceptedPrompt, ...] = ()
    imagination: ImagineHistory = ImagineHistory()

    def with_imagined(self, imagination: ImagineHistory) -> Slice:
        """This slice with other imagined prompts."""
        return self.model_copy(update={"imagination": imagination})

    def compute_content_version(self) -> str:
        """Hash of the parsed content: white space, comments and the order of keys and prompts do not count."""
        value = self.model_dump(include={"description", "target", "refusal"})
        value["seeds"] = sorted((seed.get_hashed_fields() for seed in self.seeds), key=hash_content)
        value["accepted"] = sorted({prompt.text for prompt in self.accepted})
        # Not the imagined prompts: the stage that imagines them would never be fresh.
        value["generation"] = self.imagination.generation
        return hash_content(value)


def collect_held_out_keys(golden: list[LabelledRow], dev: list[LabelledRow]) -> set[str]:
    """Normalized texts of golden and dev rows, which must not be used for training."""
    return {normalize_text(row.text) for row in [*golden, *dev]}
