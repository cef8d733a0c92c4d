"""What asking for some slices would take, without asking."""

from __future__ import annotations

from dataclasses import dataclass

from distill_dagster.hashing import content_hash
from distill_dagster.prompts.choice import Embed
from distill_dagster.prompts.context import context_schema, pool, prompt_context
from distill_dagster.prompts.seeds import held_out_keys, seed_prompts
from distill_dagster.prompts.templates import Templates
from distill_dagster.taskfiles import TaskFolder
from distill_dagster.teacher.ask import Asker
from distill_dagster.teacher.client import Endpoint
from distill_dagster.teacher.embedded import embedded_identity
from distill_dagster.teacher.store import CompletionStore
from distill_dagster.teacher.written import prompt_of


@dataclass(frozen=True)
class Estimate:
    """Requests for one slice: `calls` would be sent, `cached` are answered by the store.

    Labels that share their first tokens are asked for again behind the shared part (`resolve_labels`): how often is
    known only from the first answers, so `calls` is then the least there can be.
    """

    slice: str
    prompts: int
    calls: int
    cached: int


def estimate(
    folder: TaskFolder, store: CompletionStore, slices: list[str], embed: Embed | None = None
) -> list[Estimate]:
    """The requests that materializing these slices would send. `embed` as for `Asker`.

    Raises:
        InputError: a file of the task is malformed.
        TeacherError: there is no such embedded teacher.
    """
    task = folder.task
    held_out = held_out_keys(folder.golden, folder.dev)
    examples = pool(prompt_context(folder.examples, held_out, context_schema(task)))
    spec = task.teacher
    # Found without a server and without a key.
    identity = embedded_identity(spec) if spec.embedded else content_hash(spec.identity())
    recorded = folder.recorded(spec) if spec.replayed else None
    endpoint = Endpoint(spec.model, identity, recorded=recorded)
    templates = Templates(folder.templates(), task.kind, task.reasoning)
    asker = Asker(task, templates, examples, endpoint, store, embed)
    out = []
    for key in slices:
        prompts = [prompt_of(m) for m in seed_prompts(key, folder.slice(key))["messages"]]
        asker.choice.look_up([prompt.text for prompt in prompts])
        keys = {asker.request(prompt, sample).key for prompt in prompts for sample in asker.samples(prompt.text)}
        stored = len(store.known(keys))
        # A replay teacher is sent nothing, whether the store has its answer already or not.
        out.append(Estimate(key, len(prompts), 0 if recorded is not None else len(keys) - stored, stored))
    return out
