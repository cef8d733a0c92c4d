"""Releases: numbered folders with a trained student in formats that other programs load.

The gate before a release, the exports and their parity with the adapter, the registry, the cards and the exports of
datasets belong here. Answering requests from a release belongs to `serving`.
"""
