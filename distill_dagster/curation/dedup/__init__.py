"""Duplicates in tables of texts: exact, near (MinHash, verified by exact Jaccard) and by meaning.

    text.py        how texts are folded, what a word is, and the scheme that hashes stand under
    rows.py        reading texts in batches from a frame, a query or Parquet files
    kernel.py      compiled: bytes of texts to hashes, signatures and Jaccard
    signing.py     the kernel over batches in threads
    duplicates.py  candidate pairs, verified pairs, clusters, representatives: Polars queries
    state.py       the same slice by slice, against all that was seen before
    pure.py        the same pairs without compiled code: one DuckDB query, exact to the last pair
    semantic.py    pairs by sentence embeddings

Nothing here knows of tasks, stages or Dagster. The kernel is imported at first use.
"""
