"""From the user's files to prompts: seeds, few-shot examples, templates."""
