"""What rows, seeds and slices are, as models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

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
    """A prompt: a text, or the turns of a conversation, of which the user's are then its text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: _TEXT
    messages: Annotated[list[Turn], Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _text_of_turns(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("messages"), list) or "text" in value:
            return value
        turns = [t for t in value["messages"] if isinstance(t, dict) and t.get("role") == "user"]
        return value | {"text": "\n".join(str(t.get("content") or "") for t in turns)}

    @field_validator("messages")
    @classmethod
    def _user_last(cls, value: list[Turn] | None) -> list[Turn] | None:
        if value is not None:
            roles = [turn.role for turn in value]
            if roles[-1] != "user" or "system" in roles[1:]:
                raise ValueError("the last turn is the user's, and a system turn can only be the first")
        return value


class LabelledRow(PromptText):
    """One line of a JSONL file: a prompt and, where a person answered it, the label or answer.

    `answer` is any JSON value for kinds without labels, in the kind's canonical form once it is read.
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
    def _number_ids(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @property
    def answer_json(self) -> str:
        """The label or answer as canonical JSON text."""
        return to_canonical_json(self.answer if self.answer is not None else self.label)

    def said(self) -> dict[str, Any]:
        """All that counts of a row; fields that came later are left out where they are empty, so no hash moves."""
        return _drop_empty(self.model_dump(exclude={"source"}), "answer", "reasoning", "messages")


class Seed(PromptText):
    """One seed prompt of a slice: a plain string in the YAML, or a mapping with these fields."""

    id: str | None = None
    target_label: str | None = None
    reference: Any = None
    axes: dict[str, str] = {}
    source: str | None = None

    def said(self) -> dict[str, Any]:
        """All that counts of a seed, as of a row."""
        return _drop_empty(self.model_dump(exclude={"source"}), "messages")


def _drop_empty(value: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: inner for name, inner in value.items() if inner is not None or name not in names}


class Slice(BaseModel):
    """One `slices/<slice>.yaml`, and the prompts that came to this slice through the inbox or were imagined for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: Annotated[str, Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    target: Annotated[int, Field(ge=1)] | None = None
    refusal: Literal["wanted"] | None = Field(
        default=None, description="a safety slice: a refusal is the right answer, and any other is none"
    )
    _accepted: tuple[AcceptedPrompt, ...] = PrivateAttr(default=())  # private: nothing that can be written in the YAML
    _imagination: ImagineHistory = PrivateAttr(default=ImagineHistory())

    @property
    def accepted(self) -> tuple[AcceptedPrompt, ...]:
        return self._accepted

    def with_accepted(self, rows: Iterable[AcceptedPrompt]) -> Slice:
        slice_ = self.model_copy()
        slice_._accepted = tuple(rows)
        return slice_

    @property
    def imagination(self) -> ImagineHistory:
        return self._imagination

    def with_imagined(self, imagination: ImagineHistory) -> Slice:
        slice_ = self.model_copy()
        slice_._imagination = imagination
        return slice_

    @field_validator("seeds", mode="before")
    @classmethod
    def _plain_strings(cls, value: Any) -> Any:
        return [{"text": s} if isinstance(s, str) else s for s in value] if isinstance(value, list) else value

    def content_version(self) -> str:
        """Hash of what the slice says, parsed and canonical: white space, comments and key order do not count."""
        value = _drop_empty(self.model_dump(exclude={"seeds"}), "refusal")
        seeds = [seed.said() for seed in self.seeds]
        value |= {"seeds": sorted(seeds, key=hash_content)}
        if self.accepted:
            value["accepted"] = sorted({row.text for row in self.accepted})
        if self.imagination.generation:  # not the imagined prompts: the stage that imagines them would never be fresh
            value["generation"] = self.imagination.generation
        return hash_content(value)


def collect_held_out_keys(golden: list[LabelledRow], dev: list[LabelledRow]) -> set[str]:
    """Normalized texts of golden and dev: what may not stand on the training side."""
    return {normalize_text(row.text) for row in [*golden, *dev]}
