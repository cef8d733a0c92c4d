"""Settings of models that do other work than answering prompts: the judge, and the teacher that imagines prompts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill_dagster.config.base import ConfigModel
from distill_dagster.config.teacher import PriceSpec, TeacherSpec
from distill_dagster.config.terms import TermsSpec
from distill_dagster.config.thinking_models import THINKING_TOKENS, fill_thinking_defaults


class AuxiliaryTeacherSpec(ConfigModel):
    """A model that judges or imagines prompts. Its settings mean what those of `teacher` mean."""

    model: str = Field(description="the model, as in `teacher.model`")
    api: Literal["chat", "text"] = Field(
        default="chat", description="chat completions, or plain text completions for base models"
    )
    api_base: str | None = Field(default=None, description="address of the server; by default the provider's")
    api_key_env: str | None = Field(default=None, description="name of the environment variable with the key")
    revision: str | None = Field(
        default=None, description="version of the model, if its name does not say it; another revision is asked again"
    )
    response_format: Literal["auto", "json_schema", "prompt"] = Field(
        default="auto",
        description="how an answer gets its form (chat API): json_schema by the provider's response_format, prompt by "
        "instructions, auto by json_schema if litellm knows that the model supports it",
    )
    thinking_tokens: Annotated[int, Field(ge=0, le=100_000)] | None = Field(
        default=None,
        description="tokens that the model may think before its answer, on top of max_tokens (chat API); by default "
        f"{THINKING_TOKENS} for models that are known to think, else 0",
    )
    concurrency: Annotated[int, Field(ge=1, le=512)] = Field(
        default=8, description="largest number of requests at the same time"
    )
    requests_per_minute: Annotated[int, Field(ge=1)] | None = Field(default=None, description="rate limit in requests")
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="rate limit in tokens of prompts and answers; an answer counts as max_tokens"
    )
    timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="seconds until a request without an answer is cut"
    )
    max_retries: Annotated[int, Field(ge=0, le=20)] = Field(
        default=4, description="how often a request is sent again after a network error, a rate limit or a server error"
    )
    price: PriceSpec | None = Field(
        default=None, description="for a model that litellm does not know, or your own price"
    )
    terms: TermsSpec = Field(default=TermsSpec(), description="the provider's terms on training with answers")

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, value: Any) -> Any:
        return fill_thinking_defaults(value)

    def to_teacher_spec(self, task_teacher: TeacherSpec) -> TeacherSpec:
        """The settings as a teacher. An embedded model shares the server of the task's teacher."""
        spec = TeacherSpec(**{name: getattr(self, name) for name in AuxiliaryTeacherSpec.model_fields})
        return spec.model_copy(update={"few_shot": task_teacher.few_shot}) if spec.model == task_teacher.model else spec

    def dump_request_settings(self) -> dict[str, Any]:
        """The settings that can change an answer, for hashes: not address, limits or price."""
        included = {"model", "api", "revision", "response_format"}
        return self.model_dump(include=included | ({"thinking_tokens"} if self.thinking_tokens is not None else set()))
