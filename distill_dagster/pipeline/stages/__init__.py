"""What each asset does: read its inputs from the lake, call the engine, write one artifact with its record."""
