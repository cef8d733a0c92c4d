"""Turn the user's files into prompts: seed prompts, few-shot examples, and the templates of requests to a teacher.

Building and sending requests belongs to `teacher`. How a student sees a prompt belongs to `student`.
"""
