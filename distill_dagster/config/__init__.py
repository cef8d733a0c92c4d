"""What a user writes in `task.yaml`: parsed, validated, hashed by part. One module for each block; `task` has them all.

from distill_dagster.config import Task, TeacherSpec
"""

from distill_dagster.config.answers import KIND, LABEL_KINDS, AnswerSpec, Label, Tool
from distill_dagster.config.auxiliary_teacher import Asked
from distill_dagster.config.base import SLICE_KEY, TASK_NAME
from distill_dagster.config.budget import BudgetSpec
from distill_dagster.config.curation import CurationSpec
from distill_dagster.config.evaluation import EvaluationSpec, GateSpec
from distill_dagster.config.imagine import ImagineSpec
from distill_dagster.config.inbox import InboxSpec
from distill_dagster.config.judge import JudgeSpec
from distill_dagster.config.refresh import RefreshSpec
from distill_dagster.config.replay import REPLAY, REPLAY_NAME, ReplaySpec
from distill_dagster.config.student import Lora, StudentSpec
from distill_dagster.config.task import Task
from distill_dagster.config.teacher import EMBEDDED, CascadeSpec, FewShot, TeacherSpec
from distill_dagster.config.terms import TermsSpec

__all__ = [
    "EMBEDDED",
    "KIND",
    "LABEL_KINDS",
    "REPLAY",
    "REPLAY_NAME",
    "SLICE_KEY",
    "TASK_NAME",
    "AnswerSpec",
    "Asked",
    "BudgetSpec",
    "CascadeSpec",
    "CurationSpec",
    "EvaluationSpec",
    "FewShot",
    "GateSpec",
    "ImagineSpec",
    "InboxSpec",
    "JudgeSpec",
    "Label",
    "Lora",
    "RefreshSpec",
    "ReplaySpec",
    "StudentSpec",
    "Task",
    "TeacherSpec",
    "TermsSpec",
    "Tool",
]
