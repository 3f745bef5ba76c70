"""Errors that are the user's to mend: commands show them as one line, without a traceback."""


class UserError(ValueError):
    """Something the user gave is wrong; the message says what, where, and what would be right."""


class CorpusError(UserError):
    """A corpus on disk is missing, incomplete, altered or not readable."""


class ConfigError(UserError):
    """A config key is unknown, has the wrong type, or contradicts another key."""


class WeightsError(UserError):
    """A weights file does not hold the tensors that the model needs."""
