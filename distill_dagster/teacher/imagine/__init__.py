"""Imagining prompts: the plan of what to ask for, reading and comparing the answers, and the log of accepted prompts.

Prompts that people write or that come through the inbox belong to `tasks` and `intake`.
"""
