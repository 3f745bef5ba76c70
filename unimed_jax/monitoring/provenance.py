"""What a result was made with: versions, commit, devices."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import flax
import jax
import jaxlib

from unimed_jax.version import __version__


def software() -> Mapping[str, str]:
    """Versions of unimed_jax, with the commit where it runs from a checkout, and of JAX."""
    commit = _commit()
    return {
        "unimed_jax": f"{__version__} ({commit})" if commit else __version__,
        "jax": f"{jax.__version__}, jaxlib {jaxlib.__version__}, flax {flax.__version__}",
    }


def hardware() -> str:
    """The devices of all processes: ``4 x TPU v5 lite in 1 process``."""
    count = jax.process_count()
    kind = jax.devices()[0].device_kind
    return f"{jax.device_count()} x {kind} in {count} process{'es' if count > 1 else ''}"


def _commit() -> str:
    """Short hash of the checkout, with "modified" where files differ; "" without a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + (", modified" if changed else "")
    except (OSError, subprocess.CalledProcessError):  # no git, or a repository of another user
        return ""
