"""Exports: directories that PyTorch libraries open, verified before they appear."""
