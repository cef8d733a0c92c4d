"""The stages of a task, what each is made from, and what is out of date.

`stage_table` declares the stages, `freshness` compares records with today's files, `stages` has one function for
each asset. It knows no Dagster: running stages belongs to `orchestration` and to the top-level `assets`.
"""
