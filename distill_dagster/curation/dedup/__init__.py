"""Duplicates in tables of texts (exact, near and semantic), and rows that leak evaluation items.

Everything here works on any Polars frame, query or Parquet file, without tasks, stages or Dagster (docs/dedup.md).
Which rows leave a dataset is not decided here but in `curation.dataset`. The kernel is imported at first use.

    folding.py        text normalization, words, and the settings that hashes depend on (`MinHashScheme`)
    text_rows.py      read texts in batches from a frame, a query or Parquet files
    kernel.py         compiled by numba: from bytes of texts to hashes, MinHash signatures and exact Jaccard
    signatures.py     run the kernel over batches in threads
    duplicates.py     exact and near-duplicates of one table: candidate pairs, verified pairs, clusters
    incremental.py    the same slice by slice, against all rows seen before
    ray_duplicates.py the same on a Ray cluster
    semantic.py       pairs of rows with close sentence embeddings
    decontaminate.py  rows that contain golden or dev items
"""
