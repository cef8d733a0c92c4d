"""Imagining prompts: a teacher writes new prompts for a slice until the slice has its target.

The plan of what to ask for, the parsing and comparing of answers, the asking itself, and the log of accepted prompts
are here. Prompts that people write or that come through the inbox belong to `tasks` and `intake`.
"""
