"""From completions to a dataset: candidates, scores, filters, duplicates and the cut.

`candidates`, `scores` and `filters` look at one prompt at a time, and `dedup` at a whole table of texts. `dataset` puts
them together. Nothing here asks a teacher or trains a student.
"""
