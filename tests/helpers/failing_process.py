"""One process of a job that only runs the failure detector.

Its orders: ``leave``, ``step N``, ``hang``, ``give up``.
"""

import sys
import time

from unimed_jax.distributed.failure_detector import join_job

detector = join_job()
print("ready", flush=True)
for order in sys.stdin:
    if order == "leave\n":
        detector.deregister()
        break
    if order.startswith("step"):
        detector.step = int(order.split()[1])
        print("ready", flush=True)
        continue
    if order == "hang\n":
        detector.write_stacks = lambda: print("stacks", flush=True)
        detector.report_hang("a reason")
    detector.abort("a reason", status=2)
else:
    time.sleep(600)
