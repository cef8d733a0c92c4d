"""From the user's files to prompts: seed prompts, few-shot examples, and the templates that a teacher is asked with.

Sending a prompt belongs to `teacher`; templates of students belong to `student`.
"""
