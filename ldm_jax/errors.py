"""Errors that a user can mend; the mains turn them into one line, without traceback.

Each is a built-in kind as well, so that code which calls the package as a library may
catch what it is used to. The message says what was expected, what came and what to
change, in one line.
"""


class UserError(Exception):
    """The base of all errors that a user can mend; what the mains catch."""


class ConfigError(UserError, ValueError):
    """A config, or a flag, that cannot work."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is missing, unreadable or of another model."""


class ConversionError(ConfigError):
    """A model that cannot be converted."""


class DataError(UserError, ValueError):
    """Data that cannot be read while a run goes on."""


class DecodeError(UserError, ValueError):
    """An image that cannot be read."""


class TrainingDiverged(UserError, RuntimeError):
    """A loss or a gradient is no longer finite; the run has stopped."""
