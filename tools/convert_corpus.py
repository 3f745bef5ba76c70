"""The command ``unimed-jax convert``, started from a checkout."""

import sys

from unimed_jax.convert_corpus import main

if __name__ == "__main__":
    sys.exit(main())
