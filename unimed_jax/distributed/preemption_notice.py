"""Preemption and maintenance notices of Google Cloud, from the host's metadata server.

The server announces maintenance, and the preemption of a Spot VM, half a minute or more before the
host stops; a signal would reach its processes only when the system is already shutting down. (Pods
of GKE and jobs of Slurm receive SIGTERM in time.)
"""

import http.client
import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

_INTERVAL_SECONDS = 5
_TIMEOUT_SECONDS = 5
# path -> the value that announces the end of this host
_NOTICES = {
    "instance/preempted": "TRUE",
    "instance/maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE",
}


def watch(announce: Callable[[str], None]) -> Callable[[], None]:
    """Watches for notices in a thread; calls ``announce`` once, with, say, ``preempted TRUE``.

    Polls the server that GCE_METADATA_HOST names, or that of a Google Compute Engine VM; does
    nothing elsewhere.

    Returns:
      A function that stops the thread.
    """
    stop = threading.Event()
    server = os.environ.get("GCE_METADATA_HOST") or _own_server()

    def ask() -> None:
        while not stop.wait(_INTERVAL_SECONDS):
            try:
                notice = _notice(server)
            except (OSError, http.client.HTTPException) as error:  # it may respond next time
                logging.info("metadata server %s: %s", server, error)
                continue
            if notice:
                announce(notice)
                return

    if server:
        threading.Thread(target=ask, name="maintenance", daemon=True).start()
    return stop.set


def _own_server() -> str:
    product = Path("/sys/class/dmi/id/product_name")
    try:
        on_google = "Google Compute Engine" in product.read_text()
    except OSError:
        on_google = False
    return "metadata.google.internal" if on_google else ""


def _notice(server: str) -> str:
    """The first notice; "" if there is none. Raises OSError, HTTPException."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # not reachable by proxy
    for path, meaning in _NOTICES.items():
        request = urllib.request.Request(
            f"http://{server}/computeMetadata/v1/{path}", headers={"Metadata-Flavor": "Google"}
        )
        try:
            with opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
                value = response.read().decode().strip()
        except urllib.error.HTTPError as error:
            if error.code == 404:  # a server in a pod knows only some of the paths
                continue
            raise
        if value == meaning:
            return f"{path.removeprefix('instance/')} {value}"
    return ""
