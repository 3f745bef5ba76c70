"""One process of a job that only runs the failure detector: it deregisters, aborts or waits."""

import sys
import time

from unimed_jax.distributed.failure_detector import join_job

detector = join_job()
print("ready", flush=True)
for order in sys.stdin:
    if order == "leave\n":
        detector.deregister()
        break
    detector.abort("a reason", status=2)
else:
    time.sleep(600)
