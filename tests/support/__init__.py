"""What several test folders share: a small task, and a provider that costs nothing."""
