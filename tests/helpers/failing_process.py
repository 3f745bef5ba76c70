"""One process of a job that only watches its peers: leaves, gives up, or waits, as it is told."""

import sys
import time

from unimed_jax.distributed.failure_detector import join

peers = join()
print("ready", flush=True)
for order in sys.stdin:
    if order == "leave\n":
        peers.leave()
        break
    peers.give_up("a reason", status=2)
else:
    time.sleep(600)
