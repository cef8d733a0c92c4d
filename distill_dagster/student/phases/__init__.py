"""Phases of training after the objective: preference pairs and on-policy distillation, with TRL's trainers.

The student renders every prompt and answer to token ids itself. TRL's templates and truncation are not used.
"""
