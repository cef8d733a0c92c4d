"""From samples to candidates: one answer per prompt, chosen by a rule that the task declares.

Thresholds do not belong here: a candidate keeps its scores, and `filters` decide what is dropped.
"""
