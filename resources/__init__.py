"""Dagster resources: task folders, lake, completion store, model folder and teacher.

A resource holds configuration and opens what the engine needs. Logic belongs to `distill_dagster`.
"""
