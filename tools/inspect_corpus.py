"""The command ``unimed-jax inspect``, started from a checkout."""

import sys

from unimed_jax.inspect_corpus import main

if __name__ == "__main__":
    sys.exit(main())
