"""Students: base models with adapters, their training, their predictions, and sentence embeddings.

A student knows rows and labels, not where they come from. Comparing students belongs to `evaluation`.
"""
