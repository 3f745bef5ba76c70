"""Corpora in: sources, the conversion plan, and the writing of TFRecord shards."""
