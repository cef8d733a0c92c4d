"""From samples to candidates: one answer per prompt, chosen by a rule that the task declares.

Thresholds do not belong here: a candidate keeps its scores, and `curation.filters` decides which rows are dropped.
Asking a teacher does not belong here either: these functions read the stored completions.
"""
