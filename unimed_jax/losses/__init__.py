"""Losses as pure functions of arrays: contrastive, segmentation, exact gradient caching."""
