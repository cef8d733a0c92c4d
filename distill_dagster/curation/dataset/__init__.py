"""The cut: filters, duplicates, decontamination, balance and split make the candidates of all slices into one dataset.

A rule that looks at one row belongs to `filters`, one that compares texts to `dedup`.
"""
