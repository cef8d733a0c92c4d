"""Everything about the teacher, from bottom to top: providers, completions, judge, imagine, asking.

`providers` sends one request, `completions` pays for it and stores its answer, `judge` and `imagine` are features
of their own, and `asking` makes a table of prompts into a table of completions. What becomes of the completions
belongs to `curation`.
"""
