"""Tables between stages: schemas, the type of a prompt's turns, data versions, validation, and the lake.

Every table that a stage writes is declared in `schemas` and stored through `lake`. Code that computes a table's rows
belongs to the package of its subject.
"""
