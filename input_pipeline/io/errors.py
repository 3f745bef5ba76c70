"""Errors that the user can fix: commands show them as one line, without a traceback."""


class UserError(ValueError):
    """Invalid user input; the message says what is wrong, where, and what is valid."""


class CorpusError(UserError):
    """A corpus on disk is missing, incomplete, altered or not readable."""


class ConfigError(UserError):
    """A config key is unknown, has the wrong type, or contradicts another key."""


class WeightsError(UserError):
    """A weights file does not hold the tensors that the model needs."""
