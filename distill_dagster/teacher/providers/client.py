"""The endpoint of a teacher, and one attempt at a request."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distill_dagster.config import TeacherSpec
from distill_dagster.core import redaction
from distill_dagster.core.errors import TeacherError
from distill_dagster.core.hashing import hash_content
from distill_dagster.core.json_text import replace_surrogates
from distill_dagster.core.paths import Home
from distill_dagster.core.slugs import slugify
from distill_dagster.teacher.providers.attempts import AttemptError
from distill_dagster.teacher.providers.exchange import Request, Response
from distill_dagster.teacher.providers.responses import parse_response, redact_response
from distill_dagster.teacher.providers.terms import require_acknowledgement
from distill_dagster.teacher.providers.transport import send_request

if TYPE_CHECKING:
    from distill_dagster.teacher.providers.replay import ReplayTeacher

NO_KEY = "no-key"
"""Sent to servers that need no key, because the client requires one."""
OPENAI_PREFIXES = ("openai/", "text-completion-openai/")


@dataclass(frozen=True)
class Endpoint:
    """Where to send requests: a litellm model id, and an address and a key if they are not the provider's default."""

    model: str
    identity: str
    api_base: str | None = None
    api_key: str | None = None
    recorded: ReplayTeacher | None = None
    """A replay teacher, which answers instead of a server."""
    runner_folder: Path | None = None
    """Where a batch runner finds the requests of `mode: batch`. None if the provider's batch API answers them."""
    has_server: bool = True
    """Whether requests can be sent online."""

    def __repr__(self) -> str:
        base = redaction.redact(self.api_base) if self.api_base else None
        return f"Endpoint({self.model!r}, {self.identity!r}, api_base={base!r})"


def resolve_endpoint(spec: TeacherSpec) -> Endpoint:
    """Return the endpoint of a teacher that is not embedded, with the key from the variable that the spec names.

    The folder of a batch runner is `batches/<model>-<identity>` of the installation.

    If the spec names no variable, an OpenAI-compatible server at the user's own address gets no key: OPENAI_API_KEY is
    meant for OpenAI. The default address of a provider gets the key from the provider's own variable.

    Raises:
        TermsError: the terms restrict training with the answers, and the task does not acknowledge that.
        TeacherError: the variable is not set.
    """
    require_acknowledgement(spec)
    if missing := find_missing_key(spec):
        raise TeacherError(" ".join(missing))
    key = None
    if spec.api_key_env and not spec.has_no_server:
        key = os.environ[spec.api_key_env].strip()
    elif spec.has_no_server or (spec.model.startswith(OPENAI_PREFIXES) and spec.api_base):
        key = NO_KEY
    if key is not None and key != NO_KEY:
        redaction.remember_secret(key)
    model = spec.model
    if spec.api == "text" and model.startswith("openai/"):
        model = "text-completion-" + model
    identity = hash_content(spec.dump_identity())
    folder = None
    if spec.batch.runner is not None:
        folder = Home.from_env().batches / f"{slugify(spec.model.partition('/')[2])}-{identity[:8]}"
    return Endpoint(model, identity, spec.api_base, key, runner_folder=folder, has_server=not spec.has_no_server)


def find_missing_key(spec: TeacherSpec) -> tuple[str, str] | None:
    """What is missing and what to do, if a teacher cannot be asked because its key is not in the environment.

    Only for keys that this project reads: one that task.yaml names, and OpenAI's own.
    """
    remedy = "Set it, or set teacher.api_key_env or teacher.api_base in task.yaml."
    name = spec.api_key_env
    if spec.has_no_server:
        return None
    if name:
        remedy = "Set it, or fix teacher.api_key_env in task.yaml."
    elif spec.model.startswith(OPENAI_PREFIXES) and not spec.api_base:
        name = "OPENAI_API_KEY"
    if not name or os.environ.get(name, "").strip():
        return None
    return f"The teacher {spec.model} needs its key in the environment variable {name}, which is not set.", remedy


async def ask_once(
    endpoint: Endpoint, request: Request, timeout_s: float, in_flight: int = 1, secrets: list[str] | None = None
) -> Response:
    """Send a request once.

    Args:
        in_flight: how many requests of this process are under way, with this one; stored with the answer.
        secrets: secrets to remove from the answer; by default all credentials that the process knows.

    Raises:
        AttemptError: no answer came, or none that can be read.
        ContentFilterError: the provider's content filter rejected the prompt.
    """
    started = time.perf_counter()
    body = await send_request(endpoint, request, timeout_s)
    latency = time.perf_counter() - started
    secrets = redaction.list_credentials() if secrets is None else secrets
    try:
        response = parse_response(body, latency, in_flight, logprobs=bool(request.params.get("logprobs")))
        return redact_response(response, secrets)
    except AttemptError as error:
        error.answer = redact_response(error.answer, secrets) if error.answer is not None else None
        raise


def redact_error(text: str, endpoint: Endpoint) -> str:
    """Remove secrets from an error message, and characters that no database stores, and shorten it.

    Providers echo keys, even keys that a library found.
    """
    plain = str(replace_surrogates(text)).replace("\x00", "")
    return redaction.redact(plain, endpoint.api_key if endpoint.api_key != NO_KEY else None)[:500]
