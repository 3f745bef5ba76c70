"""Images with masks: their records, and how they come from files; order and batches are shared."""
