"""Peak resident memory of this process and of commands, in bytes."""

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def of_this_process() -> int:
    """The peak so far; on Linux without that of the process which started this one."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def of_python(arguments: Sequence[str], cwd: Path) -> int:
    """Runs Python with the arguments; the peak of its largest process. Exits if it fails."""
    process = subprocess.Popen([sys.executable, *arguments], cwd=cwd)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(arguments)}")
    return 1024 * usage.ru_maxrss
