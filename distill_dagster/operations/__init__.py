"""What keeps a project running: alerts about failed runs, and the Data Docs site.

It reports on artifacts and never makes them.
"""
