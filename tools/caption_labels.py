"""The command ``unimed-jax caption``, started from a checkout."""

import sys

from unimed_jax.caption_labels import main

if __name__ == "__main__":
    sys.exit(main())
