"""Everything about the teacher, from bottom to top: providers, completions, judge, imagine, asking.

`providers` sends one request. `completions` pays for it and stores its answer. `judge` and `imagine` are features of
their own. `asking` turns a table of prompts into a table of completions. Choosing among them belongs to `curation`.
"""
