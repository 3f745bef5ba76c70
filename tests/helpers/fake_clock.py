"""A clock for tests."""


class FakeClock:
    """A clock that the test moves."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
