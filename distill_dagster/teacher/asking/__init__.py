"""From a table of prompts to a table of completions: building requests, reading answers, soft labels, and the estimate.

Sending a request belongs to `providers`. Storing and paying for answers belongs to `completions`.
"""
