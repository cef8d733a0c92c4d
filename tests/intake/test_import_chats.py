"""`distill import`: chats become prompts, answers and labelled rows of a conversation."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import yaml

from distill_dagster.pipeline.source_versions import compute_source_version
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.teacher.providers.replay import load_replay_teacher
from tests.intake.place import Place
from tests.support.kind_folder import write_kind_folder


@pytest.fixture
def talk(tmp_path: Path) -> Place:
    """A task of kind conversation."""
    place = Place(tmp_path)
    place.path = write_kind_folder(tmp_path, "conversation", "http://127.0.0.1:9/v1").path
    return place


TURNS = [
    {"role": "user", "content": "I want to send the lamp back to a.b@example.org."},
    {"role": "assistant", "content": "When did it come?"},
    {"role": "user", "content": "On Monday. And?"},
]


def test_chats_are_seeds_of_a_conversation_with_all_their_turns(talk: Place) -> None:
    tool = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}
    rows = [
        {
            "id": 1,
            "messages": [{"role": "system", "content": "Be kind."}, *TURNS, {"role": "assistant", "content": "Done."}],
        },
        {"messages": TURNS[:1]},
        {"messages": [*TURNS[:1], tool, {"role": "tool", "content": "x"}, TURNS[2]]},
        {"text": "only a text"},
    ]
    path = talk.file("chats.jsonl", rows)
    done = talk.load(path, "seeds", slice="one")
    assert (done.added, done.skipped) == ({"slice one": 3}, {"with tool calls in the chat": 1})
    assert done.masked == {"EMAIL": 2}
    prompts = build_seed_prompts("one", talk.folder.read_slice("one"))
    found = [row["messages"] for row in prompts.filter(pl.col("origin") == "log").to_dicts()]
    masked = TURNS[0]["content"].replace("a.b@example.org", "<EMAIL>")
    assert sorted([(turn["role"], turn["content"]) for turn in messages] for messages in found) == sorted(
        [
            [("system", "Be kind."), ("user", masked), ("assistant", "When did it come?"), ("user", "On Monday. And?")],
            [("user", masked)],
            [("user", "only a text")],
        ]
    )
    assert talk.load(path, "seeds", slice="one").added == {}
    assert talk.errors() == []
    version = compute_source_version(talk.folder, "slice_files", "one")
    other = [TURNS[0], TURNS[1] | {"content": "Which day?"}, TURNS[2]]
    assert talk.load(talk.file("more.jsonl", [{"messages": other}]), "seeds", slice="one").count == 1, "another chat"
    assert compute_source_version(talk.folder, "slice_files", "one") != version


def test_recorded_chats_answer_the_same_chats_as_seeds(talk: Place) -> None:
    chats = talk.file("chats.jsonl", [{"messages": [*TURNS, {"role": "assistant", "content": "Done."}]}])
    done = talk.load(chats, "recorded")
    assert "`replay: {match: conversation}`" in done.hint
    talk.load(chats, "seeds", slice="one")
    spec = {"model": "replay/chats", "replay": {"match": "conversation"}}
    task = yaml.safe_load((talk.path / "task.yaml").read_text())
    (talk.path / "task.yaml").write_text(yaml.safe_dump(task | {"teacher": spec}))
    [seed] = [accepted.text for accepted in talk.folder.read_slice("one").accepted]
    recorded = load_replay_teacher(talk.folder, talk.folder.task.teacher)
    assert [recording.completion for recording in recorded.find(seed)] == ["Done."]


def test_chats_are_labelled_rows_of_a_conversation(talk: Place) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]},
        {"messages": [*TURNS, {"role": "assistant", "content": "Done."}]},
    ]
    done = talk.load(talk.file("chats.jsonl", rows), "golden")
    assert done.added == {"golden.jsonl": 2}
    first, second = talk.golden_rows()
    assert (first["text"], first["answer"]) == ("Hello", "Hi")
    assert (second["messages"], second["answer"]) == (TURNS, "Done.")
    held_out = talk.load(talk.file("again.jsonl", [{"messages": TURNS}]), "seeds")
    assert held_out.skipped == {"golden or dev": 1}
    assert talk.errors() == []
