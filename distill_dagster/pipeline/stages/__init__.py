"""What each asset does: read its inputs from the lake, call the engine, write one artifact with its record.

A stage has no logic of its own beyond that order; the logic belongs to the packages below.
"""
