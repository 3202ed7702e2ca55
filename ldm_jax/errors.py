"""The kinds of errors that a user can mend; the mains turn them into one line."""


class ConfigError(ValueError):
    """A config that cannot work; the message is one line and names the fix."""


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, unreadable or of another model."""


class ConversionError(ConfigError):
    """A model that cannot be converted; the message is one line."""


class DataError(ValueError):
    """Data that cannot be read while a run goes on; the message is one line."""


class DecodeError(ValueError):
    """An image that cannot be read; the message says what is wrong with it."""


class TrainingDiverged(RuntimeError):
    """A loss or a gradient is no longer finite; the run has stopped."""
