"""The graph: one file per stage, thin. What the assets do stands in `distill_dagster.pipeline.stages`."""

from assets.task import task_definitions

__all__ = ["task_definitions"]
