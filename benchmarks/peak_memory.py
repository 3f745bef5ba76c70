"""Peak resident memory of this process and of commands, in bytes."""

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def of_this_process() -> int:
    """The peak so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def of_python(arguments: Sequence[str], cwd: Path) -> int:
    """Runs Python with the arguments; the peak of its largest process. Exits if it fails."""
    process = subprocess.Popen([sys.executable, *arguments], cwd=cwd)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(arguments)}")
    return 1024 * usage.ru_maxrss
