"""Trained models in Python: ``load`` for the dual encoder, a sliding window for volumes."""
