"""Data that comes in from elsewhere: the inbox, `distill import`, recorded completions, and masking of personal data.

What comes in is checked, masked and appended to files that `tasks` reads. Nothing here asks a teacher.
"""
