"""Parses the command line into the flags, with one-line errors."""

from collections.abc import Sequence

from absl import flags

from ldm_jax.cli.flags import REQUIRED, apply_renamed
from ldm_jax.errors import ConfigError


def read_flags(argv: Sequence[str], arguments: str = "") -> list[str]:
    """Parses a command line.

    Args:
      argv: The command line, with the name of the program.
      arguments: Positional arguments of the command, for its help; none by default.

    Returns:
      The name of the program and the positional arguments.

    Raises:
      ConfigError: If a flag is missing or its value is wrong, or if arguments are given
        to a command that takes none.
      flags.Error: If a flag is unknown.
    """
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config.") and "config" in flags.FLAGS:
            raise ConfigError(
                f"--{error.flagname} changes a key of the config: give --config=... "
                "before it"
            ) from error
        raise
    except flags.IllegalFlagValueError as error:
        raise ConfigError(_illegal(str(error))) from error
    if len(rest) > 1 and not arguments:
        raise ConfigError(_stray(rest[1]))
    missing = [name for name in REQUIRED if flags.FLAGS[name].value is None]
    if missing:
        raise ConfigError(f"--{missing[0]} is missing; --help explains the flags")
    apply_renamed()
    return rest


# Part of absl's message for a value that it cannot parse -> what the value must be.
_UNREADABLE = {
    "invalid literal for int": "a whole number",
    "could not convert string to float": "a number",
    "Non-boolean argument": "True or False",
}


def _illegal(text):
    """The error for the value of a flag, without absl's "flag --name=value:"."""
    head, _, reason = text.partition(": ")
    flag = head.removeprefix("flag ")
    for theirs, ours in _UNREADABLE.items():
        if theirs in reason:
            return f"{flag} must be {ours}"
    return reason if reason.startswith("--") else f"{flag}: {reason}"


def _stray(word):
    """The error for a word that is not a flag, with what may have been meant."""
    name, mark, value = word.partition("=")
    if not mark:
        return f"'{word}' is not a flag: write --name=value"
    name = name.lstrip("-")
    if "." in name and "config" in flags.FLAGS:
        name = "config." + name.removeprefix("config.")
    return f"'{word}' is not a flag: write --{name}={value}"
