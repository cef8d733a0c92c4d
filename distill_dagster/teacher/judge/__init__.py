"""The judge: a second model that scores answers by a rubric, or picks the best of several.

Filters that use a judge's score belong to `curation.filters`.
"""
