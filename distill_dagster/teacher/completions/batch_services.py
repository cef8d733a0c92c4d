"""Who answers batches: the batch API of a provider, or a runner that reads and writes files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from distill_dagster.config import TeacherSpec
from distill_dagster.teacher.completions.batch_api import NotAtProviderError, call_batch_api, get_batch_provider
from distill_dagster.teacher.completions.batch_files import get_batch_url
from distill_dagster.teacher.completions.runner_folder import RunnerFolder
from distill_dagster.teacher.providers.body_parts import read_count
from distill_dagster.teacher.providers.client import Endpoint

SUBMISSION_KEY = "distill_submission"
"""The metadata key of a batch whose value is the name of its submission."""
PAGE_SIZE = 100


@dataclass(frozen=True)
class BatchState:
    """How far a batch is. `status` has OpenAI's words, `files` the ids of what came, `errors` why it was refused."""

    status: str
    answered: int = 0
    files: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


class BatchService(Protocol):
    """Takes batches of request lines, and gives back lines of results some time later.

    A batch has the name of its submission, by which it is found after a crash. All methods raise a `TeacherError` if
    the service cannot be reached, and `NotAtProviderError` for a batch or file that it does not have.

    Attributes:
        waiting_for: what the progress display says while a run waits.
        remedy: a sentence that says what a person has to do before answers come, or an empty text.
    """

    waiting_for: str
    remedy: str

    async def create(self, name: str, lines: Sequence[str]) -> str:
        """Take a batch. Returns its id. It exists whole or not at all, also if the process is killed."""
        ...

    async def list_ids(self) -> dict[str, str]:
        """The ids of batches, by their names."""
        ...

    async def look(self, batch_id: str) -> BatchState:
        """How far a batch is."""
        ...

    async def read_file(self, file_id: str) -> bytes:
        """The lines of results of one of a batch's files."""
        ...

    def discard(self, name: str) -> None:
        """The answers of a batch are stored: what it took here may go."""
        ...


class ProviderBatches:
    """OpenAI's files and batches, through litellm."""

    waiting_for, remedy = "waiting for the batch", "The provider answers them within a day."

    def __init__(self, endpoint: Endpoint, spec: TeacherSpec) -> None:
        self.endpoint, self.spec = endpoint, spec

    async def create(self, name: str, lines: Sequence[str]) -> str:
        """Upload the lines and create the batch."""
        import litellm

        content = "".join(f"{line}\n" for line in lines).encode()
        file = await self._call(litellm.acreate_file, file=(f"{name}.jsonl", content), purpose="batch")
        batch = await self._call(
            litellm.acreate_batch,
            completion_window="24h",
            endpoint=get_batch_url(self.spec),
            input_file_id=file.id,
            metadata={SUBMISSION_KEY: name},
        )
        return str(batch.id)

    async def list_ids(self) -> dict[str, str]:
        """Read the whole list of batches, page by page."""
        import litellm

        batch_ids: dict[str, str] = {}
        after: str | None = None
        while True:
            page = await self._call(litellm.alist_batches, after=after, limit=PAGE_SIZE)
            batches = list(page.data if hasattr(page, "data") else page["data"])
            for batch in batches:
                if name := (batch.metadata or {}).get(SUBMISSION_KEY):
                    batch_ids[name] = batch.id
            if len(batches) < PAGE_SIZE or batches[-1].id == after:
                return batch_ids
            after = batches[-1].id

    async def look(self, batch_id: str) -> BatchState:
        """Ask for the state of a batch."""
        import litellm

        batch = await self._call(litellm.aretrieve_batch, batch_id=batch_id)
        answered = read_count(getattr(batch.request_counts, "completed", 0)) or 0
        files = tuple(file_id for file_id in (batch.output_file_id, batch.error_file_id) if file_id)
        errors = tuple(str(error.message) for error in (batch.errors.data if batch.errors else None) or [])
        return BatchState(batch.status, answered, files, errors)

    async def read_file(self, file_id: str) -> bytes:
        """Download a result file."""
        import litellm

        content = await self._call(litellm.afile_content, file_id=file_id)
        return bytes(content.content)

    def discard(self, name: str) -> None:
        """Nothing: the provider deletes its files itself."""

    async def _call(self, call: Any, **arguments: Any) -> Any:
        return await call_batch_api(self.endpoint, self.spec, call, **arguments)


class RunnerBatches:
    """Files for a runner, such as vLLM's. A batch has ended once the file with its answers is there."""

    def __init__(self, folder: RunnerFolder, spec: TeacherSpec) -> None:
        self.folder, self.spec = folder, spec
        self.waiting_for = f"waiting for {folder.script}"
        self.remedy = f"To answer them, run `python {folder.script}` where vLLM is installed."

    async def create(self, name: str, lines: Sequence[str]) -> str:
        """Write the file of requests, and next to it the program that answers it."""
        self.folder.write_requests(self.spec, name, lines)
        return name

    async def list_ids(self) -> dict[str, str]:
        """The files of requests that are there."""
        return {name: name for name in self.folder.list_names()}

    async def look(self, batch_id: str) -> BatchState:
        """Whether the answers are there."""
        if self.folder.has_answers(batch_id):
            return BatchState("completed", 0, (batch_id,))
        if batch_id not in self.folder.list_names():
            raise NotAtProviderError(f"{self.folder.path} has no requests and no answers of the batch {batch_id}.")
        return BatchState("in_progress")

    async def read_file(self, file_id: str) -> bytes:
        """The answers of a batch."""
        return self.folder.read_answers(file_id)

    def discard(self, name: str) -> None:
        """Remove the files of a batch."""
        self.folder.remove(name)


def open_batch_service(endpoint: Endpoint, spec: TeacherSpec) -> BatchService:
    """The service that answers a teacher's batches.

    Raises:
        TeacherError: the provider has no batch API that litellm supports.
    """
    if endpoint.runner_folder is not None:
        return RunnerBatches(RunnerFolder(endpoint.runner_folder), spec)
    get_batch_provider(spec)
    return ProviderBatches(endpoint, spec)
