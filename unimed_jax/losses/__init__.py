"""Losses as pure functions of arrays; ``registry`` lists them by name."""
