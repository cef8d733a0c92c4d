"""The lake in an object store: immutable objects under unique names, and one small pointer object per artifact.

A pointer is replaced by a conditional put, so one of two writers wins and the other one learns who did. Readers follow
the pointer to files in a local cache. `lake.ObjectLake` has the interface of `tables.lake.Lake`.
"""
