"""From a table of prompts to a table of completions: building requests, reading answers, soft labels, and the estimate.

How a request travels belongs to `providers`; what is stored and paid for belongs to `completions`.
"""
