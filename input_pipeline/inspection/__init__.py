"""What is in a corpus: one pass over its images, duplicates, leaks, burned-in text."""
