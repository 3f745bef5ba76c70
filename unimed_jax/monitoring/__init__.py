"""Measurements of a run: metrics, throughput, profiles, FLOPs."""
