"""Received answers and what they cost: the completion store, the ledger, the engine and provider batches.

Everything that reaches a provider passes the engine here. What is asked, and what an answer means, belongs to
`asking`.
"""
