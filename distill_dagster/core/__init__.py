"""The ground floor: errors, hashing, files, progress, redaction and other helpers that know nothing of distillation.

What belongs here is used by several packages and needs only libraries. What knows a table, a task or a teacher does
not.
"""
