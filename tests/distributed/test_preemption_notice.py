"""Notices of Google Cloud's metadata server, from a server on loopback."""

import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from unimed_jax.distributed import preemption_notice, process


@pytest.fixture
def metadata(monkeypatch):
    """path -> value of the metadata server that this process polls."""
    values = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            value = values.get(self.path.removeprefix("/computeMetadata/v1/instance/"))
            allowed = self.headers["Metadata-Flavor"] == "Google"
            self.send_response(403 if not allowed else 404 if value is None else 200)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
    monkeypatch.setattr(preemption_notice, "_INTERVAL_SECONDS", 0.05)
    yield values
    server.shutdown()


@pytest.mark.parametrize(
    ("quiet", "notice"),
    [
        ({"preempted": "FALSE", "maintenance-event": "NONE"}, {"preempted": "TRUE"}),
        (
            {"maintenance-event": "MIGRATE_ON_HOST_MAINTENANCE"},  # nothing stops
            {"maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"},
        ),
    ],
)
def test_a_notice_stops_the_loop_like_sigterm(metadata, quiet, notice, capfd):
    metadata.update(quiet)
    before = signal.getsignal(signal.SIGTERM)
    stop = process.StopSignal()
    time.sleep(0.5)
    assert not stop.received(1)
    metadata.update(notice)
    deadline = time.monotonic() + 20
    while not stop.received(2) and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.restore()
    assert stop.received(2)
    assert stop.name == "SIGTERM"
    said = " ".join(next(iter(notice.items())))
    assert f"this host will be taken away: {said}" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_nothing_is_asked_outside_of_google_cloud(monkeypatch):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.setattr(preemption_notice, "_own_server", lambda: "")
    before = threading.active_count()
    preemption_notice.watch(lambda _: os.abort())()
    assert threading.active_count() == before
