"""The command ``unimed-jax compile-report``, started from a checkout."""

import sys

from unimed_jax.compile_report import main

if __name__ == "__main__":
    sys.exit(main())
