"""Corpus -> TFRecord shards -> deterministic batches. Imports TensorFlow and NumPy, never torch."""

import os

from input_pipeline.io import triton_guard

# TensorFlow reads these when it is imported, which the modules of this package do
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# oneDNN picks kernels by machine and load; without it pixels are the same everywhere
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

triton_guard.install()
