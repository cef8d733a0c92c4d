"""Hypothesis for this project: the same examples in every run, and no limit on time that a busy machine would break."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("distill", deadline=None, derandomize=True, database=None)
settings.load_profile("distill")
