"""Asking the teacher: requests, client, completion store, soft labels."""
