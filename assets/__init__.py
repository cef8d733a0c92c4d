"""The graph: one file per stage, thin. What the assets do stands in `distill_dagster.pipeline.stages`."""

from assets.task import build_task_definitions

__all__ = ["build_task_definitions"]
