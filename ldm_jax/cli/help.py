"""`--help`: usage, description and grouped flags of a command."""

import pathlib
import shutil
import sys
import textwrap

from absl import flags

from ldm_jax.cli.flags import GROUPS, REQUIRED

_SHORT = {"--help", "-help", "--helpshort", "-h"}
_FULL = {"--helpfull", "-helpfull"}

# Type of a flag, as absl names it -> placeholder for its value.
_VALUES = {
    "string": "VALUE",
    "int": "N",
    "float": "X",
    "comma separated list of strings": "A,B",
    "multi string": "VALUE",
    "config object": "CONFIG",
}

# Column at which the help texts begin.
_INDENT = 28


def asked(argv: list[str]) -> str:
    """Checks whether a command line asks for help.

    Args:
      argv: The command line, with the name of the program.

    Returns:
      "short", "full" (with the flags of libraries), or "" if it does not.
    """
    if not _FULL.isdisjoint(argv[1:]):
        return "full"
    return "" if _SHORT.isdisjoint(argv[1:]) else "short"


def text(doc: str, arguments: str = "", full: bool = False) -> str:
    """Composes the help of the running command.

    Args:
      doc: Docstring of the command.
      arguments: Its positional arguments, e.g. "SOURCE TARGET".
      full: Whether to add the flags that are in no group, such as those of libraries.

    Returns:
      Several lines.
    """
    required = [f"--{name}=..." for name in REQUIRED]
    usage = " ".join([_program(), *filter(None, [arguments]), *required, "[flags]"])
    parts = [f"usage: {usage}", doc.strip()]
    for title, names in GROUPS.items():
        parts.append("\n".join([f"{title}:", *map(_line, names)]))
    if full:
        parts.append(flags.FLAGS.get_help())
    else:
        parts.append("--helpfull lists all flags, those of the libraries too.")
    return "\n\n".join(parts)


def _program() -> str:
    """The running command as typed in a shell."""
    script = pathlib.Path(sys.argv[0])
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name:
        return f"python -m {spec.name.removesuffix('.__main__')}"
    return f"python {script.name}" if script.suffix == ".py" else script.name


def _line(name: str) -> str:
    """The help of a flag: name, placeholder of the value, text and default."""
    flag = flags.FLAGS[name]
    if flag.boolean:
        head = f"--[no]{name}"
    else:
        head = f"--{name}={_VALUES.get(flag.flag_type(), '...')}"
    # absl appends what `head` already shows: the form of lists, the values of an enum.
    words = flag.help.split(";\n")[0]
    if isinstance(flag.parser, flags.EnumParser):
        values = "|".join(flag.parser.enum_values)
        head, words = f"--{name}={values}", words.removeprefix(f"<{values}>: ")
    default = "" if flag.default in (None, False, True) else f" [{flag.default}]"
    head = f"  {head:<{_INDENT - 4}}  "
    width = min(88, shutil.get_terminal_size().columns) - _INDENT
    lines = textwrap.wrap(words + default, max(width, 40))
    if len(head) > _INDENT:
        # A long name gets a line of its own.
        head, lines = head.rstrip(), ["", *lines]
    return head + ("\n" + " " * _INDENT).join(lines)
