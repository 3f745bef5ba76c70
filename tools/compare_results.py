"""The command ``unimed-jax compare``, started from a checkout."""

import sys

from unimed_jax.compare_results import main

if __name__ == "__main__":
    sys.exit(main())
