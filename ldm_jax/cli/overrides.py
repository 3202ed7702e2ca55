"""`--config` and the flags that override its keys, e.g. `--config.train.num_steps=2`.

Keys of the config keep their type. A key that it does not have, e.g.
`--config.backbone.dropout=0.1`, is added: whether it is valid is checked where the
section is read.
"""

import ast
import difflib
import sys
from collections.abc import Iterable
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from ldm_jax.cli.configs import load_config
from ldm_jax.cli.flags import REQUIRED
from ldm_jax.errors import ConfigError

_PREFIX = "config."
# Old name of a section -> its name.
_RENAMED = {"unet": "backbone"}
# The user names the sections in this one: `data.parts.photos.name` creates `photos`.
_NAMED = "parts"
# The same, but their entries need too many keys for a command line.
_ENTRIES = ("conditions", "data.inputs")


def config_flag(help_: str) -> flags.FlagHolder:
    """Defines `--config` and the flags that override its keys.

    Args:
      help_: Help of the flag.

    Returns:
      The FlagHolder; its value is the config.
    """
    REQUIRED.append("config")
    flag = _ConfigFlag(
        parser=_ByName(),
        serializer=flags.ArgumentSerializer(),
        name="config",
        default=None,
        help_string=help_,
    )
    return flags.DEFINE_flag(flag)


def set_key(config: ConfigDict, key: str, text: str, again: bool = False) -> None:
    """Sets a key to a value from the command line.

    Args:
      config: The config, changed in place.
      key: Dotted key, e.g. "train.num_steps".
      text: The value: a number, a word, a tuple such as "1,2"; "None" unsets the key.
      again: Whether the flag was given before; if so, a tuple extends the earlier one.

    Raises:
      ConfigError: If there is no such section, or the value is of another type.
    """
    _open_sections(config, key)
    section, name = _section_of(config, key)
    kind = section.get_type(name) if name in section else None
    if kind is not None and issubclass(kind, ConfigDict):
        raise ConfigError(
            f"--{_PREFIX}{key} is a section: set its keys, as "
            f"--{_PREFIX}{key}.{next(iter(section[name]), 'KEY')}=..."
        )
    value = _parse(kind, text, f"--{_PREFIX}{key}")
    if again and isinstance(value, tuple):
        value = (*section[name], *value)
    with section.ignore_type(), section.unlocked():
        section[name] = value


def is_switch(config: ConfigDict, key: str) -> bool:
    """Whether a key is boolean, so that `--config.KEY` without a value turns it on.

    Args:
      config: The config.
      key: Dotted key.

    Returns:
      Whether it is; False if there is no such key.
    """
    try:
        section, name = _section_of(config, key)
    except ConfigError:
        return False
    return name in section and section.get_type(name) is bool


def _open_sections(config, key):
    """Creates the section that a key needs, if the user names such sections."""
    *path, _ = key.split(".")
    section = config
    for depth, part in enumerate(path):
        if part not in section or not isinstance(section[part], ConfigDict):
            return
        section = section[part]
        own = path[depth + 1 : depth + 2]
        if part == _NAMED and own and own[0] not in section:
            with section.unlocked():
                section[own[0]] = ConfigDict({_NAMED: {}})


def _section_of(config, key):
    """The section that holds a key, and the key's own name."""
    *path, name = key.split(".")
    section = config
    for depth, part in enumerate(path):
        if part not in section or not isinstance(section[part], ConfigDict):
            raise ConfigError(_no_section(section, path, depth, name))
        section = section[part]
    if not path and name not in section:
        known = _spellings(name, section)
        raise ConfigError(f"--{_PREFIX}{key}: the config has no key '{name}'; {known}")
    return section, name


def _no_section(section, path, depth, name):
    part = path[depth]
    before = ".".join(path[:depth])
    where = f"section {before}" if before else "config"
    if not depth and part in _RENAMED:
        return (
            f"--config has no section {part}; it is called {_RENAMED[part]} now: write "
            f"--{_PREFIX}{'.'.join([_RENAMED[part], *path[1:], name])}"
        )
    sections = [k for k in section if isinstance(section[k], ConfigDict)]
    close = difflib.get_close_matches(part, sections, n=1)
    if close:
        right = ".".join([*path[:depth], close[0], *path[depth + 1 :], name])
        hint = f"did you mean --{_PREFIX}{right}?"
    else:
        hint = "it has " + (", ".join(sorted(sections)) or "none")
        if before in _ENTRIES:
            hint += ": write others into a config file, as that of shapes_depth"
    flag = f"--{_PREFIX}{'.'.join([*path, name])}"
    return f"{flag}: the {where} has no section '{part}'; {hint}"


def _spellings(name, known):
    close = difflib.get_close_matches(name, list(known), n=1)
    if close:
        return f"did you mean --{_PREFIX}{close[0]}?"
    return f"it has {', '.join(sorted(known))}"


def _parse(kind, text, flag):
    """Parses a value as the type of the one it replaces; for new keys, as a literal."""
    # In lower case they are ordinary values of string keys: `norm="none"`.
    unset = ("None",) if kind is str else ("None", "none", "null")
    if text.strip() in unset:
        return None
    if kind is None or kind not in _PARSERS:
        return _literal(text)
    words, parse = _PARSERS[kind]
    try:
        return parse(text)
    except (ValueError, OverflowError) as error:
        if "," in text and kind in (int, float):
            # Some keys also take a tuple, with one value for each level.
            return _tuple(text)
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise ConfigError(f"{flag}={shown} must be {words}") from error


def _whole(text):
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if number != int(number):
            raise
        # Many write a million as 1e6.
        return int(number)


def _switch(text):
    if not _is_switch(text):
        raise ValueError
    return _SWITCHES[text.strip().lower()]


def _is_switch(text):
    return text.strip().lower() in _SWITCHES


def _tuple(text):
    """A tuple of comma-separated values, with or without brackets."""
    value = _literal(text)
    if isinstance(value, str) and value[:1] not in ("(", "["):
        value = tuple(map(_literal, value.split(","))) if value else ()
    if isinstance(value, str | dict):
        raise ValueError
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _literal(text):
    """The Python literal that a text is, or else the text itself."""
    if _is_switch(text) and not text.strip().isdecimal():
        return _SWITCHES[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return text


_SWITCHES = {"true": True, "false": False, "1": True, "0": False}
_SWITCHES |= {"yes": True, "no": False, "on": True, "off": False}

# Type of a key -> description of its values, and their parser.
_PARSERS = {
    int: ("a whole number", _whole),
    float: ("a number", float),
    bool: ("True or False", _switch),
    str: ("a string", str),
    tuple: ("a tuple, as 1,2 or (1, 2)", _tuple),
    list: ("a tuple, as 1,2 or (1, 2)", _tuple),
}


class _ByName(flags.ArgumentParser):
    """Loads the config that a flag names."""

    def parse(self, name):
        """Returns the config of that name, locked; ConfigError if there is none."""
        return load_config(name).lock()

    def flag_type(self):
        """Returns the type of the flag, for absl's help."""
        return "config object"


class _ConfigFlag(flags.Flag):
    """`--config`; parsing it defines the flags of keys that the command line sets."""

    def _parse(self, argument):
        if self.present:
            # The flags that set keys belong to the first one.
            raise ConfigError("it is given twice: keep one")
        config = super()._parse(argument)
        if isinstance(config, ConfigDict):
            for key in _keys_set(flags.FLAGS.read_flags_from_files(sys.argv[1:])):
                if _PREFIX + key not in flags.FLAGS:
                    flags.DEFINE_flag(_KeyFlag(config, key))
        return config


class _KeyFlag(flags.Flag):
    """A flag that sets one key of the config."""

    def __init__(self, config: ConfigDict, key: str) -> None:
        """Makes the flag, without defining it.

        Args:
          config: The config.
          key: Dotted key.
        """
        self._config, self._key, self._given = config, key, False
        super().__init__(
            parser=flags.ArgumentParser(),
            serializer=None,
            name=_PREFIX + key,
            default=None,
            help_string=f"Sets {key} of the config.",
            boolean=is_switch(config, key),
        )

    def parse(self, argument):
        """Sets the key to a value given as text; ConfigError if it is not valid."""
        text = str(argument)
        set_key(self._config, self._key, text, self._given)
        self.value, self._given = text, True
        self.present += 1


def _keys_set(argv: Iterable[str]) -> list[Any]:
    """Dotted keys that a command line sets, without duplicates."""
    keys = {}
    for word in argv:
        if word == "--":
            break
        name = word.split("=", 1)[0]
        for dashes in ("--", "-"):
            for start in (f"{dashes}{_PREFIX}", f"{dashes}no{_PREFIX}"):
                if name.startswith(start):
                    keys.setdefault(name.removeprefix(start))
    return list(keys)
