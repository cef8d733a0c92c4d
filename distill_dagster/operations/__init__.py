"""What an operator reads: alerts about failed runs, and the Data Docs site.

Code here reports on artifacts and never makes them. Connections to databases belong to `core`.
"""
