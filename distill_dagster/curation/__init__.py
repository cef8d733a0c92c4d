"""From completions to a dataset: candidates, scores, thresholds, duplicates, decontamination, split."""
