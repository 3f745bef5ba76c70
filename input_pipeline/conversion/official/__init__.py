"""Readers of the files that the owners of label-only parts distribute; one module per owner.

Each has an `open_...` function for a `Layout` (`annotations.py`): it returns None if its files are
not below --raw.
"""
