"""Exit statuses of commands; an error that the user can fix is one line."""

import logging
import os
import sys
from collections.abc import Callable

from input_pipeline.io.errors import UserError
from input_pipeline.io.library_errors import TRACEBACK, LibraryError, show, user_errors

# EX_TEMPFAIL of sysexits.h: nothing has to be fixed, the same command resumes the run
RESTART_STATUS = 75


def status_of(error: UserError) -> int:
    """The exit status of a command that ends with an error that the user can fix."""
    return RESTART_STATUS if isinstance(error, LibraryError) and error.temporary else 2


def quiet_libraries() -> None:
    """Hides what libraries log before they raise, often once per thread or attempt.

    The error itself is shown; ``library_errors.TRACEBACK`` in the environment shows the rest.
    """
    if not os.environ.get(TRACEBACK):
        for name in ("absl", "gcsfs"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def run(action: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Runs a command.

    Args:
      action: returns an exit status, or None for 0.
      interrupted: what is printed after Ctrl-C.

    Returns:
      The exit status: that of the action; 2 after an error that the user can fix, which is printed,
      or 75 if it may be gone by itself; 130 after Ctrl-C.
    """
    quiet_libraries()
    try:
        with user_errors():
            return action() or 0
    except UserError as error:
        show(error)
        return status_of(error)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
