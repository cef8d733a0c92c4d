"""`distill tune` on a small task with a random model: trials, resuming, the proposal, and the page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import transformers
import yaml
from typer.testing import CliRunner, Result

from distill_dagster.cli import app
from distill_dagster.core import models, plots
from distill_dagster.core.errors import DistillError
from distill_dagster.core.paths import Home, get_tuning_folder
from distill_dagster.kinds import get_kind
from distill_dagster.pipeline.stages.context import Markdown
from distill_dagster.pipeline.stages.predictions import predict_rows
from distill_dagster.pipeline.stages.students import make_student_adapter
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.types import TRAINING_LOG_FILE, TaskSettings
from distill_dagster.tables.lake import ArtifactRecord, Lake
from distill_dagster.tables.schemas import DATASET, build_frame
from distill_dagster.tuning.trials import Trials, TrialsChangedError
from distill_dagster.tuning.tune import tune_student
from tests.support.task import TEXTS, build_stage_context, write_small_task

PLACES = ("today {}", "since monday {}", "as I wrote, {}")
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def build_dataset() -> pl.DataFrame:
    """The teacher calls texts about refunds delivery, and four people call them refund. Its other answers are right."""
    answers = [
        (place.format(text), "delivery" if label == "refund" else label, "train" if number else "validation")
        for number, place in enumerate(PLACES)
        for label, texts in TEXTS.items()
        for text in texts
        if number or label != "refund"
    ]
    given: list[tuple[str, str, str, str, str | None]] = [(*answer, "shop", "large") for answer in answers]
    given += [(text, "refund", "train", "(human)", None) for text in TEXTS["refund"]]
    rows: list[dict[str, Any]] = []
    for number, (text, label, split, slice_, teacher) in enumerate(given):
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": label}]
        columns: dict[str, Any] = {"prompt_id": f"p{number:02}", "slice": slice_, "answer": f'"{label}"'}
        columns |= {"messages": turns, "weight": 1.0, "split": split, "teacher": teacher, "completion_ids": []}
        rows.append(dict.fromkeys(DATASET) | columns)
    return build_frame(rows, DATASET, ("prompt_id",))


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    source = models.resolve_model("all-minilm-l6-v2", models_folder).location
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**SIZES, vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Place:
    """A project with one task whose dataset is made. Its student starts without the human answers."""

    def __init__(self, root: Path, model: Path | str) -> None:
        self.home = Home(root=root / "home", tasks=root / "tasks")
        self.environment = {"DISTILL_HOME": str(self.home.root), "DISTILL_TASKS": str(self.home.tasks)}
        student = {"model": str(model), "epochs": 1, "learning_rate": 0.01, "patience": None, "objective": "answer"}
        student |= {"data": {"human_factor": 0}}
        self.folder = write_small_task(root, students={"tiny": student})
        self.file = self.folder.path / "task.yaml"
        self.file.write_text("# Mail to a shop.\n" + self.file.read_text())
        self.write_dataset("v")

    def write_dataset(self, version: str) -> None:
        record = ArtifactRecord("filtered_dataset", None, version, "4", {})
        Lake(self.home.lake, self.home.reports).write(self.folder.name, build_dataset(), record)

    def tune(self, *arguments: str, trials: int | None = 3) -> Result:
        command = ["tune", self.folder.name, "tiny", *arguments]
        command += ["--trials", str(trials)] if trials else []
        return CliRunner().invoke(app, command, env=self.environment, catch_exceptions=False)

    def read_json(self, *arguments: str, trials: int | None = 3) -> dict[str, Any]:
        ended = self.tune("--json", *arguments, trials=trials)
        assert ended.exit_code == 0, ended.output
        found: dict[str, Any] = json.loads(ended.stdout)
        return found


@pytest.fixture
def place(tmp_path: Path, tiny_encoder: Path) -> Place:
    return Place(tmp_path, tiny_encoder)


SEARCH = ("--search", "data.human_factor=0,10", "--search", "epochs=1,2")


def test_better_settings_are_found_proposed_and_applied(tmp_path: Path) -> None:
    """The teacher is wrong about refunds, so a student is better that learns from people too."""
    place = Place(tmp_path, "all-minilm-l6-v2")
    before = place.file.read_text()
    found = place.read_json(*SEARCH, trials=4)
    assert sum(found["trials"].values()) == 4
    assert (found["split"], found["items"], found["metric"]) == ("dev", 6, "accuracy")
    assert found["current"]["settings"] == {"data.human_factor": 0, "epochs": 1}
    assert found["current"]["score"] <= 4 / 6
    assert found["best"]["settings"]["data.human_factor"] > 0
    assert found["best"]["score"] > found["current"]["score"]
    assert found["lead"]["value"] == pytest.approx(found["best"]["score"] - found["current"]["score"])
    assert not found["applied"]
    assert place.file.read_text() == before
    assert f"+      human_factor: {found['best']['settings']['data.human_factor']}\n" in found["diff"]
    page = Path(found["page"]).read_text()
    assert page.count("<tr") == 5
    assert page.count("settings of task.yaml</span>") == 1
    assert Path(found["page"]).with_suffix(".png").read_bytes().startswith(b"\x89PNG")

    again = place.read_json("--apply", *SEARCH, trials=4)
    assert again["applied"]
    assert {**again, "applied": False} == found  # no trial ran again
    assert place.file.read_text().startswith("# Mail to a shop.\n")
    student = yaml.safe_load(place.file.read_text())["students"]["tiny"]
    assert student["data"]["human_factor"] == found["best"]["settings"]["data.human_factor"]
    assert student["epochs"] == found["best"]["settings"]["epochs"]
    after = place.read_json(*SEARCH, trials=4)
    assert after["current"] == after["best"] == found["best"]
    assert after["diff"] == ""


def test_apply_alone_takes_the_trials_that_are_there(place: Place) -> None:
    ended = place.tune("--apply", trials=None)
    assert ended.exit_code == 1
    assert "Run `distill tune" in ended.output
    _ = place.read_json("--search", "batch_size=8,16", trials=1)
    found = place.read_json("--search", "epochs=1,2", trials=2)
    again = place.read_json("--apply", trials=None)
    assert {**again, "applied": False} == found
    assert again["applied"] == bool(found["diff"])
    place.write_dataset("w")
    assert place.tune("--apply", trials=None).exit_code == 1


def test_a_trial_is_the_training_that_the_proposal_would_give(place: Place, tmp_path: Path) -> None:
    folder, scratch = place.folder, tmp_path / "scratch"
    scratch.mkdir()
    task, spec = folder.task, folder.task.students["tiny"]
    env = build_stage_context(folder, place.home.root)
    trials, losses = Trials(env, "tiny"), list[float]()
    items = trials.read_items()
    result = trials.run(spec, items, scratch, lambda _, scores: losses.append(scores["loss"]))
    assert not list(scratch.iterdir())  # what was trained is deleted
    assert result.loss == losses[-1 if result.best_epoch is None else result.best_epoch]

    plot = get_tuning_folder(env.reports, folder.name) / "tiny.png"
    plot.parent.mkdir(parents=True)
    plot.write_bytes(b"png")
    made = make_student_adapter(env, "tiny")
    assert made.shown["method"] == "lora"
    assert made.shown["tuning"] == Markdown(plots.to_markdown_image(b"png"))
    assert made.shown["tuning_page"] == plot.with_suffix(".html")
    trained = env.lake.get_folder(folder.name, made.record.asset, "tiny")
    log = json.loads((trained / TRAINING_LOG_FILE).read_text())
    assert [entry["loss"] for entry in log["validation"]] == losses
    student = load_predictor(spec, task.labels, TaskSettings.from_task(task), env.models, trained)
    rows = predict_rows(get_kind(task), "distilled", student, items)
    assert [float(row["correct"]) for row in rows] == result.scores
    env.store.close()


def test_trials_of_another_dataset_do_not_count(place: Place) -> None:
    first = place.read_json("--search", "batch_size=8,16", trials=1)
    place.write_dataset("w")
    second = place.read_json("--search", "batch_size=8,16", trials=1)
    assert (first["best"]["trial"], second["best"]["trial"]) == (0, 0)
    journal = place.home.tuning / place.folder.name / "tiny.journal"
    assert journal.read_text().count('"study_name"') == 2


def test_rows_that_are_made_again_end_the_command(place: Place) -> None:
    """Further trials would learn other rows under the name of the study."""
    told: list[int] = []

    def change(trial: object) -> None:
        told.append(1)
        place.write_dataset("w")

    with pytest.raises(TrialsChangedError, match="filtered_dataset of shop_mail was made again"):
        tune_student(place.home, place.folder, "tiny", ["learning_rate=1e-4..3e-2"], 3, change)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("text", "message"), [("students: {}\n", "has no student 'tiny'"), ("kind: [\n", "cannot be read")]
)
def test_a_broken_task_file_leaves_the_page(place: Place, text: str, message: str) -> None:
    """The trials took hours: what they found is shown, though task.yaml cannot be changed."""

    def spoil(trial: object) -> None:
        place.file.write_text(text)

    with pytest.raises(DistillError, match=message):
        tune_student(place.home, place.folder, "tiny", ["epochs=1,2"], 1, spoil)
    page = get_tuning_folder(place.home.reports, place.folder.name) / "tiny.html"
    assert page.read_text().count("settings of task.yaml</span>") == 1


def test_a_killed_trial_is_repeated(place: Place) -> None:
    """kill -9 in the middle of a trial: the next command repeats it, and goes on to the same number of trials."""
    command = [sys.executable, "-m", "distill_dagster", "tune", place.folder.name, "tiny"]
    options = ["--trials", "50", "--search", "learning_rate=1e-4..3e-2"]
    process = subprocess.Popen(
        [*command, *options],
        env=os.environ | place.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("trial 1:"):
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    found = place.read_json("--search", "learning_rate=1e-4..3e-2", trials=4)
    assert sum(found["trials"].values()) == 4
    page = Path(found["page"]).read_text()
    assert page.count("settings of task.yaml</span>") == 1


def test_a_setting_that_cannot_be_trained_is_a_failed_trial(place: Place) -> None:
    found = place.read_json("--search", "lora.last_layers=null,2,7", trials=3)
    assert found["trials"]["failed"] >= 1
    assert "the model has 2 layers" in Path(found["page"]).read_text()


def test_mistakes_are_messages(place: Place) -> None:
    ended = place.tune("--search", "lora.size=4")
    assert ended.exit_code == 1
    assert "a student has no such setting" in ended.output
    ended = CliRunner().invoke(app, ["tune", place.folder.name, "other"], env=place.environment)
    assert ended.exit_code == 2
    assert "there is no student 'other'" in ended.output
    place.file.write_text(place.file.read_text().replace("learning_rate: 0.01", "learning_rate: 2"))
    assert place.tune().exit_code == 2
