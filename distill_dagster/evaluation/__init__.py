"""Comparing systems: metrics with intervals, the verdict, the gate, and the report.

Every figure is computed from a predictions table. Making predictions belongs to `student` and to the stages.
"""
