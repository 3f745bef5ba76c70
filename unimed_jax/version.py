"""The one place where the version is written; setup.py and every checkpoint read it."""

__version__ = "0.2.0"
