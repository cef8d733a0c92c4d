"""Tables between stages: their schemas, data versions, validation, and the lake that stores them.

Every table that a stage writes is declared in `schemas`. How a table is made belongs to the package that makes it.
"""
