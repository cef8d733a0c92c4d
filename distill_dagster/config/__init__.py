"""The settings in `task.yaml` as pydantic models: one module per block, and `task` with all of them.

`deployment` has the settings of `deployment.yaml`.

This package parses, validates and hashes settings, and does nothing else with them. Reading files belongs to `tasks`.
The settings of filters are plain data here and belong to `curation.filters`.
"""

from distill_dagster.config.answers import LABEL_KINDS, AnswerSpec, LabelSpec, TaskKind, ToolSpec
from distill_dagster.config.auxiliary_teacher import AuxiliaryTeacherSpec
from distill_dagster.config.base import SLICE_KEY_PATTERN, TASK_NAME_PATTERN
from distill_dagster.config.budget import BudgetSpec
from distill_dagster.config.curation import CurationSpec
from distill_dagster.config.data_mix import DataMixSpec
from distill_dagster.config.evaluation import EvaluationSpec, GateSpec
from distill_dagster.config.imagine import ImagineSpec
from distill_dagster.config.inbox import InboxSpec
from distill_dagster.config.judge import JudgeSpec
from distill_dagster.config.refresh import RefreshSpec
from distill_dagster.config.release import ExportName, ReleaseGateSpec, ReleaseSpec
from distill_dagster.config.replay import REPLAY_NAME_PATTERN, REPLAY_PREFIX, ReplaySpec
from distill_dagster.config.routing import RoutingSpec
from distill_dagster.config.serving import ServingSpec
from distill_dagster.config.student import LoraSpec, StudentSpec
from distill_dagster.config.task import Task
from distill_dagster.config.teacher import EMBEDDED_PREFIX, CascadeSpec, FewShotSpec, TeacherSpec
from distill_dagster.config.terms import TermsSpec

__all__ = [
    "EMBEDDED_PREFIX",
    "LABEL_KINDS",
    "REPLAY_NAME_PATTERN",
    "REPLAY_PREFIX",
    "SLICE_KEY_PATTERN",
    "TASK_NAME_PATTERN",
    "AnswerSpec",
    "AuxiliaryTeacherSpec",
    "BudgetSpec",
    "CascadeSpec",
    "CurationSpec",
    "DataMixSpec",
    "EvaluationSpec",
    "ExportName",
    "FewShotSpec",
    "GateSpec",
    "ImagineSpec",
    "InboxSpec",
    "JudgeSpec",
    "LabelSpec",
    "LoraSpec",
    "RefreshSpec",
    "ReleaseGateSpec",
    "ReleaseSpec",
    "ReplaySpec",
    "RoutingSpec",
    "ServingSpec",
    "StudentSpec",
    "Task",
    "TaskKind",
    "TeacherSpec",
    "TermsSpec",
    "ToolSpec",
]
