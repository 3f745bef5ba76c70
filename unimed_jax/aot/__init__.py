"""Train steps compiled ahead of time for TPUs that are not attached, and their estimated cost."""
