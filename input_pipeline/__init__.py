"""Corpus -> TFRecord shards -> deterministic batches. Imports TensorFlow and NumPy, never torch."""
