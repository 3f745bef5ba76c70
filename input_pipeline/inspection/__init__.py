"""Inspection of a corpus: sizes, duplicates, leaked evaluation images, burned-in text."""
