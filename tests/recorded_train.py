"""unimed_jax.train, which also writes down what it reads: ``runs.recorded(RECORD)``."""

import os
from pathlib import Path

from absl import flags
from runs import recording

from unimed_jax import runtime, train
from unimed_jax.batches import Batches

Batches.read = recording(Batches.read, Path(os.environ["RECORD"]))
flags.mark_flags_as_required(["config", "workdir"])
runtime.run(train.main)
