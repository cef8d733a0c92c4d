"""What a user writes in `task.yaml`: parsed, validated, hashed by part. One module for each block; `task` has them all.

from distill_dagster.spec import Task, TeacherSpec
"""

from distill_dagster.spec.answers import KIND, LABEL_KINDS, AnswerSpec, Label, Tool
from distill_dagster.spec.asked import Asked
from distill_dagster.spec.base import SLICE_KEY, TASK_NAME
from distill_dagster.spec.budget import BudgetSpec
from distill_dagster.spec.curation import CurationSpec
from distill_dagster.spec.evaluation import EvaluationSpec, GateSpec
from distill_dagster.spec.imagine import ImagineSpec
from distill_dagster.spec.inbox import InboxSpec
from distill_dagster.spec.judge import JudgeSpec
from distill_dagster.spec.refresh import RefreshSpec
from distill_dagster.spec.replay import REPLAY, REPLAY_NAME, ReplaySpec
from distill_dagster.spec.student import Lora, StudentSpec
from distill_dagster.spec.task import Task
from distill_dagster.spec.teacher import EMBEDDED, CascadeSpec, FewShot, TeacherSpec
from distill_dagster.spec.terms import TermsSpec

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
