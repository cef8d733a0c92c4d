"""One request and its answer: clients, transport, retries, rate limits, prices, terms, the embedded server and replay.

A module here knows how a provider is spoken to. Whether a request is sent at all is decided in `completions`.
"""
