"""One request and its response: clients, transport, rate limits, prices, terms, the embedded server and replay.

A module here knows how to call a provider. Whether a request may be sent is decided in `completions`.
"""
