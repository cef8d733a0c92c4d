"""Helpers without any knowledge of distillation: errors, hashing, files, databases, progress, redaction, plots.

Code belongs here if several packages use it and it needs nothing but libraries. Code that knows a table, a task or a
teacher belongs to the package of that concept.
"""
