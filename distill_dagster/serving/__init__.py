"""The student of a release behind an HTTP API, with fallback to the teacher below the router's threshold.

It owns the protocol, batching, limits, metrics and the log of requests. What answers from an export belongs to
`release.runtimes`, and how a threshold is chosen to `release.routing`.
"""
