"""Tuning: search settings of a student that answer dev better, and propose them as a change of task.yaml.

A trial is the training of the stage `student_adapter` with other settings. Golden is never read here.
"""
