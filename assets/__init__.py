"""The asset graph: one thin file per group of stages, plus sensors, schedule and automation.

An asset names its keys, partitions, schema, lineage and pool. What it does is in `distill_dagster.pipeline.stages`.
"""

from assets.task import build_task_definitions

__all__ = ["build_task_definitions"]
