"""Environment for TensorFlow as an input pipeline; import it before TensorFlow."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# oneDNN picks kernels by machine and load; without it pixels are the same everywhere, and a notice
# is gone
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
