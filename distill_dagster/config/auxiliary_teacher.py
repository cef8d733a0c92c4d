"""Models that are asked for something else than answers: who imagines prompts, who judges."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from distill_dagster.config.base import ConfigModel
from distill_dagster.config.teacher import PriceSpec, TeacherSpec
from distill_dagster.config.terms import TermsSpec


class AuxiliaryTeacherSpec(ConfigModel):
    """A model that is asked for something else than the answers: its settings, as in `TeacherSpec`."""

    model: str
    api: Literal["chat", "text"] = "chat"
    api_base: str | None = None
    api_key_env: str | None = Field(default=None, description="name of the environment variable that holds the key")
    revision: str | None = None
    response_format: Literal["auto", "json_schema", "prompt"] = Field(
        default="auto",
        description="how an answer gets its form (chat API): by the provider's JSON schema, in the prompt, "
        "or the first where litellm knows that the model takes it",
    )
    concurrency: Annotated[int, Field(ge=1, le=512)] = 8
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    max_retries: Annotated[int, Field(ge=0, le=20)] = 4
    price: PriceSpec | None = Field(default=None, description="where litellm does not know it, or yours is another")
    terms: TermsSpec = Field(default=TermsSpec(), description="on the provider's terms on training with answers")

    def teacher(self, of_task: TeacherSpec) -> TeacherSpec:
        """As the engine takes it. An embedded model shares the server that the task's teacher runs on."""
        spec = TeacherSpec(**{name: getattr(self, name) for name in AuxiliaryTeacherSpec.model_fields})
        return spec.model_copy(update={"few_shot": of_task.few_shot}) if spec.model == of_task.model else spec

    def asked_settings(self) -> dict[str, Any]:
        """What can change an answer: not where it is asked, how fast or how often."""
        return self.model_dump(include={"model", "api", "revision", "response_format"})
