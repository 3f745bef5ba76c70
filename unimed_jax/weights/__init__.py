"""Weights in: checkpoints of this project and the file formats of others."""
