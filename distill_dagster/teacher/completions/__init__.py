"""Stored answers and their cost: the completion store, the ledger, the engine, provider batches and usage totals.

Every request to a provider goes through the engine here. What to ask, and what an answer means, belongs to `asking`,
`judge` and `imagine`.
"""
