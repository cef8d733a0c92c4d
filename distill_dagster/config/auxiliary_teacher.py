"""Settings of models that do other work than answering prompts: the judge, and the teacher that imagines prompts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from distill_dagster.config.base import ConfigModel
from distill_dagster.config.teacher import PriceSpec, TeacherSpec
from distill_dagster.config.terms import TermsSpec


class AuxiliaryTeacherSpec(ConfigModel):
    """A model that judges or imagines prompts. The settings mean what they mean in `TeacherSpec`."""

    model: str
    api: Literal["chat", "text"] = "chat"
    api_base: str | None = None
    api_key_env: str | None = Field(default=None, description="name of the environment variable with the key")
    revision: str | None = None
    response_format: Literal["auto", "json_schema", "prompt"] = Field(
        default="auto",
        description="how an answer gets its form (chat API): json_schema by the provider's response_format, prompt by "
        "instructions, auto by json_schema if litellm knows that the model supports it",
    )
    concurrency: Annotated[int, Field(ge=1, le=512)] = 8
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    max_retries: Annotated[int, Field(ge=0, le=20)] = 4
    price: PriceSpec | None = Field(
        default=None, description="for a model that litellm does not know, or your own price"
    )
    terms: TermsSpec = Field(default=TermsSpec(), description="the provider's terms on training with answers")

    def to_teacher_spec(self, task_teacher: TeacherSpec) -> TeacherSpec:
        """The settings as a teacher. An embedded model shares the server of the task's teacher."""
        spec = TeacherSpec(**{name: getattr(self, name) for name in AuxiliaryTeacherSpec.model_fields})
        return spec.model_copy(update={"few_shot": task_teacher.few_shot}) if spec.model == task_teacher.model else spec

    def dump_request_settings(self) -> dict[str, Any]:
        """The settings that can change an answer, for hashes: not address, limits or price."""
        return self.model_dump(include={"model", "api", "revision", "response_format"})
