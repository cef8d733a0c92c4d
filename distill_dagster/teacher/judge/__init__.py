"""The judge: a second model that scores candidates by a rubric, or chooses the best of differing samples.

Requests, reading the judge's answers, and asking for the candidates of a slice are here. The filter on the judge's
score belongs to `curation.filters`.
"""
