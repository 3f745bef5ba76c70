"""Failure detection in a job of several processes: if one is lost, all stop and name it.

A collective with a lost process waits forever on some platforms and raises a cryptic error on
others. Therefore every process keeps a TCP connection to process 0. The kernel closes the
connections of a process that dies, however it dies, and probes those of a silent host; process 0
reports the failure to the others.

A process that hangs keeps its connections. So each sends its step every second: one that sends
nothing for long is frozen, and where the watchdog finds no progress, process 0 says who is behind.
"""

import contextlib
import ctypes
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TextIO

import jax
from jax._src import cloud_tpu_init, distributed  # no public API; see test_jax_internals.py

from input_pipeline.io.cli import RESTART_STATUS
from input_pipeline.io.errors import UserError

_KEY = "unimed_jax/failure_detector"
_CONNECT_SECONDS = 60
_REPORT_SECONDS = 5
_BEAT_SECONDS = 1
# Less than the 100 seconds after which JAX aborts all processes, with a C++ trace.
_SILENT_BEATS = 80
_LATE_BEATS = 4  # late enough to be named where something else went wrong
_ANSWER_SECONDS = 15  # of process 0 to a process that hangs
# A host that does not respond to probes counts as lost after 10 + 3 * 5 seconds.
_PROBES = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}


def coordination_client() -> Any:
    """The client of JAX's coordination service, whose class has no public name.

    Raises:
      RuntimeError: this process is the only one of its job.
    """
    client = distributed.global_state.client
    if client is None:
        raise RuntimeError("a job of one process has no coordination service")
    return client


def join_job() -> "FailureDetector | None":
    """Connects to the other processes of the job; None if there are no others.

    On TPU VMs and under Slurm, JAX finds the job by itself; elsewhere, JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID name it.

    Raises:
      UserError: process 0 cannot be reached.
    """
    if "JAX_NUM_PROCESSES" in os.environ:
        jax.distributed.initialize(
            os.environ["JAX_COORDINATOR_ADDRESS"],
            int(os.environ["JAX_NUM_PROCESSES"]),
            int(os.environ["JAX_PROCESS_ID"]),
        )
    elif _is_slurm_step() or cloud_tpu_init.running_in_cloud_tpu_vm:
        jax.distributed.initialize()
    state = distributed.global_state
    if state.num_processes > 1 and jax.default_backend() == "cpu":
        # In a job of several processes, programs from the cache compute other numbers than freshly
        # compiled ones: seen with jaxlib 0.10.2, four processes, two CPU devices each.
        jax.config.update("jax_enable_compilation_cache", False)
    if state.num_processes == 1:
        return None
    return FailureDetector(state.process_id, state.num_processes)


def _is_slurm_step() -> bool:
    """Whether ``srun`` started this process and others."""
    return "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1


@dataclass
class _Peer:
    """What another process sent last: its step, None outside the training loop, and its age."""

    step: int | None = None
    beats_ago: int = 0


class FailureDetector:
    """The connections of this process: to process 0 or, in process 0, from all other processes.

    Attributes:
      step: the last step of this process; None outside the training loop.
      write_stacks: called before the process ends because the job hangs.
    """

    def __init__(self, index: int, count: int) -> None:
        """Connects to process 0; process 0 starts to listen.

        Raises:
          UserError: process 0 cannot be reached.
        """
        self._index, self._count = index, count
        self._hosts = {index: socket.gethostname()}
        self._connections: dict[int, socket.socket] = {}
        self._peers: dict[int, _Peer] = {}
        self._lock = threading.Lock()
        self._over = False
        self.step: int | None = None
        self.write_stacks: Callable[[], object] = lambda: None
        _delay_abort()
        if index == 0:
            self._listen()
        else:
            self._connect()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def deregister(self) -> None:
        """Announces that this process has finished; the others then ignore its exit."""
        with self._lock:
            self._over = True
            self._send_to_all({"done": True})

    def abort(self, reason: str, status: int) -> NoReturn:
        """Ends all processes of the job with ``status``, because of an error in this one."""
        with self._lock:
            self._over = True
            text = f"{self._name(self._index)} stopped: {reason}"
            self._send_to_all({"stop": text, "exit": status})
        time.sleep(1)  # they must receive it before they notice that the connection is closed
        exit_now(status)

    def report_hang(self, reason: str) -> NoReturn:
        """Ends all processes of the job, which write their stacks, and names the one that lags."""
        if self._index != 0:
            with self._lock:
                self._send_to_all({"hang": reason})
            time.sleep(_ANSWER_SECONDS)  # `_follow` ends this process, unless process 0 hangs, too
        with self._lock:
            ending, self._over = self._over, True
            lagging = self._lagging()
            text = f"{lagging}; {reason}" if lagging else reason
            if not ending:
                self._send_to_all({"stop": text, "exit": RESTART_STATUS, "hang": True})
        if ending:  # in another thread
            time.sleep(_ANSWER_SECONDS)
        self.write_stacks()
        time.sleep(1)  # they must receive it before they notice that the connection is closed
        _say(text, RESTART_STATUS)
        exit_now(RESTART_STATUS)

    def await_failure_report(self) -> None:
        """Returns if no process is lost or frozen; otherwise this process ends here, with a report.

        To be called when a collective has failed: that may be the first sign of a lost process.
        """
        time.sleep(_REPORT_SECONDS)
        if any(peer.beats_ago > _LATE_BEATS for peer in list(self._peers.values())):
            self.report_hang("a collective has failed")

    def _beat(self) -> None:
        """Sends the own step and counts the beats since the others sent theirs.

        Beats are counted, not seconds: while this process is frozen itself, no time passes.
        """
        while True:
            time.sleep(_BEAT_SECONDS)
            with self._lock:
                if self._over:
                    return
                self._send_to_all({"at": self.step})
                for peer in self._peers.values():
                    peer.beats_ago += 1
                silent = any(
                    peer.beats_ago > _SILENT_BEATS and None not in (peer.step, self.step)
                    for peer in self._peers.values()
                )
            if silent:
                self.report_hang("it is frozen, or its host is overloaded")

    def _lagging(self) -> str:
        """Which processes are silent or behind, as far as this one knows; "" if none."""
        late = {i: p.beats_ago for i, p in self._peers.items() if p.beats_ago > _LATE_BEATS}
        if late:
            return ", ".join(
                f"{self._name(i)} has not responded for {beats * _BEAT_SECONDS} s"
                for i, beats in sorted(late.items())
            )
        steps = {i: p.step for i, p in self._peers.items()} | {self._index: self.step}
        known = {i: step for i, step in steps.items() if step is not None}
        if len(known) < 2 or len(set(known.values())) == 1:
            return ""
        newest = max(known.values())
        return ", ".join(
            f"{self._name(i)} is at step {step}, others at {newest}"
            for i, step in sorted(known.items())
            if step < newest
        )

    def _listen(self) -> None:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        server = socket.create_server(
            ("", 0), family=family, backlog=self._count, dualstack_ipv6=dual
        )
        token = secrets.token_hex(16)  # rejects other programs that find the port
        address = {"port": server.getsockname()[1], "token": token, "host": self._hosts[0]}
        coordination_client().key_value_set(_KEY, json.dumps(address))

        def greet(connection: socket.socket) -> None:
            lines = connection.makefile("r", encoding="utf-8")
            with contextlib.suppress(OSError, ValueError, LookupError):
                hello = json.loads(lines.readline())
                if not secrets.compare_digest(hello["token"], token):
                    return
                with self._lock:
                    self._hosts[hello["index"]] = hello["host"]
                    self._connections[hello["index"]] = connection
                    self._peers[hello["index"]] = _Peer()
                    # Only now can a report of process 0 reach it.
                    connection.sendall(b'{"connected": true}\n')
                self._follow(hello["index"], lines)

        def accept() -> None:
            while True:
                connection = _watched(server.accept()[0])
                threading.Thread(target=greet, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, name="failure_detector", daemon=True).start()

    def _connect(self) -> None:
        content = coordination_client().blocking_key_value_get(_KEY, 1000 * _CONNECT_SECONDS)
        address = json.loads(content)
        coordinator = distributed.global_state.coordinator_address or ""
        host = coordinator.rpartition(":")[0].strip("[]")
        try:
            connection = socket.create_connection((host, address["port"]), _CONNECT_SECONDS)
        except OSError as error:
            raise UserError(
                f"process {self._index} cannot reach process 0 at {host}:{address['port']} "
                f"({error.strerror or error}); a host of a job must reach every port of the others"
            ) from error
        self._hosts[0] = address["host"]
        self._connections[0] = _watched(connection)
        hello = {"token": address["token"], "index": self._index, "host": self._hosts[self._index]}
        self._send_to_all(hello)
        lines = connection.makefile("r", encoding="utf-8")
        try:
            answer = lines.readline()
        except OSError:
            answer = ""
        if not answer:
            raise UserError(
                f"process {self._index} reached {host}:{address['port']}, but process 0 did not "
                "answer; start all processes again"
            )
        connection.settimeout(None)
        self._peers[0] = _Peer()
        threading.Thread(
            target=self._follow, args=(0, lines), name="failure_detector", daemon=True
        ).start()

    def _follow(self, index: int, lines: TextIO) -> None:
        """Reads the messages of a process, until it has finished or all have to stop."""
        message: dict[str, Any] = {"at": None}
        while "at" in message:
            self._peers[index] = _Peer(message["at"])
            try:
                message = json.loads(lines.readline() or "{}")
            except (OSError, ValueError):  # no response to the probes; killed while writing
                message = {}
        if "done" in message:
            with self._lock:
                del self._peers[index]
            return
        if "hang" in message and "stop" not in message:
            self.report_hang(message["hang"])
        lost = f"{self._name(index)} is lost: killed, out of memory, or its host failed"
        text, status = message.get("stop", lost), message.get("exit", RESTART_STATUS)
        with self._lock:
            if self._over:
                return
            self._over = True
            if self._index == 0:
                self._send_to_all({"stop": text, "exit": status})
        if "hang" in message:
            self.write_stacks()
        time.sleep(1)  # so that this line is printed after the C++ messages of JAX
        _say(text, status)
        exit_now(status)

    def _name(self, index: int) -> str:
        return f"process {index} of {self._count} (host {self._hosts[index]})"

    def _send_to_all(self, message: dict[str, Any]) -> None:
        for connection in self._connections.values():
            with contextlib.suppress(OSError):  # that process is lost, too
                connection.sendall(json.dumps(message).encode() + b"\n")


def _watched(connection: socket.socket) -> socket.socket:
    """The connection, probed by the kernel (Linux) so that a silent host is noticed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _delay_abort() -> None:
    """Gives ``FailureDetector`` the time to print its line before JAX aborts the process.

    JAX aborts as soon as process 0 is lost, with a C++ stack trace and without a hook. Therefore
    the handler of SIGABRT becomes ``sleep``, whose argument is then the number of the signal: 6
    seconds, without Python and without a lock.
    """
    libc = ctypes.CDLL(None)
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _say(text: str, status: int) -> None:
    advice = "; start all processes again" if status == RESTART_STATUS else ""
    print(f"error: {text}{advice}", file=sys.stderr)


def exit_now(status: int) -> NoReturn:
    """Ends the process without waiting for anything, because lost processes never respond."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
