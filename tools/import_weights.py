"""The command ``unimed-jax import``, started from a checkout."""

import sys

from unimed_jax.import_weights import main

if __name__ == "__main__":
    sys.exit(main())
