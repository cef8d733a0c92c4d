"""Soft labels against human labels: how well they are calibrated, and a temperature that rescales them.

Everything is computed from dev rows. The prior of `teacher.calibration`, which corrects a teacher's bias without human
answers, is in `curation.candidates.priors`.
"""
