"""The command ``unimed-jax export``, started from a checkout."""

import sys

from unimed_jax.export import main

if __name__ == "__main__":
    sys.exit(main())
