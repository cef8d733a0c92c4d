"""distill-dagster: distil a large model into a small student, as a Dagster project."""
