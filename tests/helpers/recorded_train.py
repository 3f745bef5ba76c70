"""unimed_jax.train that records the ids it reads: ``runs.recorded(RECORD)``."""

import os
from pathlib import Path

from runs import recording

from unimed_jax import train
from unimed_jax.training.data_loader import DataLoader

DataLoader.read = recording(DataLoader.read, Path(os.environ["RECORD"]))
train.main()
