"""Students: base models, training of adapters, and prediction.

A student knows rows and labels, not where they come from. Comparing students belongs to `evaluation`.
"""
