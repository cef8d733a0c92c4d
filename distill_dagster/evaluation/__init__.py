"""Compare systems: metrics with intervals, the teacher gate, the recommendation and the report.

Every figure is computed from a predictions table. Making predictions belongs to `student` and to the stages.
"""
