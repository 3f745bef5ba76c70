"""Exit statuses of commands; an error that the user can fix is one line."""

import sys
from collections.abc import Callable

from input_pipeline.io.errors import UserError
from input_pipeline.io.files import store_errors


def run(action: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Runs a command.

    Args:
      action: returns an exit status, or None for 0.
      interrupted: what is printed after Ctrl-C.

    Returns:
      The exit status: that of the action; 2 after a UserError, or one of a bucket's client, of
      which the message is printed; 130 after Ctrl-C.
    """
    try:
        with store_errors():
            return action() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
