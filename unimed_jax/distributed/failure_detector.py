"""The processes of a job: how they meet, and that all stop, and name it, where one is gone.

A collective whose partner has died waits for ever on some platforms and raises something cryptic on
others. So every process keeps a TCP connection to process 0, on which nothing is sent while all is
well. The kernel closes the connections of a process that dies, however it dies, and probes those of
a host that is silent; process 0 tells the others.
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
from typing import Any, NoReturn, TextIO

import jax
from jax._src import cloud_tpu_init, distributed  # what is used of them has no public name

from input_pipeline.io.errors import UserError

# EX_TEMPFAIL of sysexits.h: nothing has to be mended, the same command goes on
RESTART_STATUS = 75

_KEY = "unimed_jax/peers"
_CONNECT_SECONDS = 60
_VERDICT_SECONDS = 5
# A host that lost its power or network answers none of these: gone after 10 + 3 * 5 seconds.
_PROBES = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}


def join() -> "Peers | None":
    """Joins the other processes; None if this one is alone.

    On TPU VMs and under Slurm JAX finds the job by itself; elsewhere JAX_COORDINATOR_ADDRESS,
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
        # What several processes load from the cache computes other numbers than what they compile:
        # seen with jaxlib 0.10.2, four processes, two CPU devices each.
        jax.config.update("jax_enable_compilation_cache", False)
    return Peers(state.process_id, state.num_processes) if state.num_processes > 1 else None


def _is_slurm_step() -> bool:
    """Whether ``srun`` started this process and others."""
    return "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1


class Peers:
    """Connections of this process: to process 0, or from all others if it is process 0."""

    def __init__(self, index: int, count: int) -> None:
        """Connects to process 0, or starts to listen.

        Raises:
          UserError: process 0 cannot be reached.
        """
        self._index, self._count = index, count
        self._hosts = {index: socket.gethostname()}
        self._connections: dict[int, socket.socket] = {}
        self._lock = threading.Lock()
        self._over = False
        _delay_abort()
        if index == 0:
            self._listen()
        else:
            self._connect()

    def leave(self) -> None:
        """This process has done its part: from now on, nobody minds that it ends."""
        with self._lock:
            self._over = True
            self._tell_all({"done": True})

    def give_up(self, reason: str, status: int) -> NoReturn:
        """Ends this process because of an error of its own, and all others with the same status."""
        with self._lock:
            self._over = True
            self._tell_all({"stop": f"{self._name(self._index)} stopped: {reason}", "exit": status})
        time.sleep(1)  # they hear it before they notice that the connection is closed
        _leave_process(status)

    def await_verdict(self) -> None:
        """Returns if no process is gone; else this process ends here, as its connections tell it.

        To be called when a collective has failed, which may be the first sign of it.
        """
        time.sleep(_VERDICT_SECONDS)

    def _listen(self) -> None:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        server = socket.create_server(
            ("", 0), family=family, backlog=self._count, dualstack_ipv6=dual
        )
        token = secrets.token_hex(16)  # a stranger who finds the port is no peer
        facts = {"port": server.getsockname()[1], "token": token, "host": self._hosts[0]}
        distributed.global_state.client.key_value_set(_KEY, json.dumps(facts))

        def greet(connection: socket.socket) -> None:
            lines = connection.makefile("r", encoding="utf-8")
            with contextlib.suppress(OSError, ValueError, LookupError):
                hello = json.loads(lines.readline())
                if not secrets.compare_digest(hello["token"], token):
                    return
                with self._lock:
                    self._hosts[hello["index"]] = hello["host"]
                    self._connections[hello["index"]] = connection
                self._follow(hello["index"], lines)

        def accept() -> None:
            while True:
                connection = _watched(server.accept()[0])
                threading.Thread(target=greet, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, name="peers", daemon=True).start()

    def _connect(self) -> None:
        state = distributed.global_state
        facts = json.loads(state.client.blocking_key_value_get(_KEY, 1000 * _CONNECT_SECONDS))
        host = state.coordinator_address.rpartition(":")[0].strip("[]")
        try:
            connection = socket.create_connection((host, facts["port"]), _CONNECT_SECONDS)
        except OSError as error:
            raise UserError(
                f"process {self._index} cannot reach process 0 at {host}:{facts['port']} "
                f"({error.strerror or error}); a host of a job must reach every port of the others"
            ) from error
        connection.settimeout(None)
        self._hosts[0] = facts["host"]
        self._connections[0] = _watched(connection)
        hello = {"token": facts["token"], "index": self._index, "host": self._hosts[self._index]}
        self._tell_all(hello)
        lines = connection.makefile("r", encoding="utf-8")
        thread = threading.Thread(target=self._follow, args=(0, lines), name="peers", daemon=True)
        thread.start()

    def _follow(self, index: int, lines: TextIO) -> None:
        """Reads what a process says, until it has done its part or all have to stop."""
        try:
            message = json.loads(lines.readline() or "{}")
        except OSError:  # the probes were not answered
            message = {}
        if "done" in message:
            return
        gone = f"{self._name(index)} is gone: killed, out of memory, or its host was lost"
        text, status = message.get("stop", gone), message.get("exit", RESTART_STATUS)
        with self._lock:
            if self._over:
                return
            self._over = True
            if self._index == 0:
                self._tell_all({"stop": text, "exit": status})
        time.sleep(1)  # what JAX says in C++ comes first, this line last
        advice = "; start all processes again" if status == RESTART_STATUS else ""
        print(f"error: {text}{advice}", file=sys.stderr)
        _leave_process(status)

    def _name(self, index: int) -> str:
        return f"process {index} of {self._count} (host {self._hosts[index]})"

    def _tell_all(self, message: dict[str, Any]) -> None:
        for connection in self._connections.values():
            with contextlib.suppress(OSError):  # that one is gone, too
                connection.sendall(json.dumps(message).encode() + b"\n")


def _watched(connection: socket.socket) -> socket.socket:
    """The connection, probed by the kernel (Linux) so that a silent host is noticed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _delay_abort() -> None:
    """Gives ``Peers`` the time to say its line when JAX aborts the process.

    JAX does so, with a C++ stack trace and no way to be asked first, at the very moment that
    process 0 is gone. The handler of SIGABRT becomes ``sleep``, whose argument is then the number
    of the signal: 6 seconds, without Python and without a lock.
    """
    libc = ctypes.CDLL(None)
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _leave_process(status: int) -> NoReturn:
    """Ends the process without waiting for anything, as peers that are gone never answer."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
