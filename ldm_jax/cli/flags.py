"""Flags of the commands: shared flags, groups of flags, and their old names."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from absl import flags

from ldm_jax import ranges

# Title -> names of the flags in the group, both in the order of definition.
GROUPS: dict[str, list[str]] = {}

# Names of flags that must be given.
REQUIRED: list[str] = []

# Old name -> what replaces it now.
_RENAMED: dict[str, "_Renamed"] = {}


class _Renamed(NamedTuple):
    """What replaces an old flag: the new name, what to write, and the value mapping."""

    new: str
    use: str
    translate: Callable[[Any], Any] | None


class Shared(NamedTuple):
    """A flag of several commands.

    Attributes:
      define: Function of absl that defines flags of its type.
      default: Default for commands that give none of their own.
      help: Text for `--help`.
    """

    define: Callable[..., flags.FlagHolder]
    default: Any
    help: str


def shared(
    name: str, *, required: bool = False, default: Any = None
) -> flags.FlagHolder:
    """Defines a flag of the table SHARED for this command.

    Args:
      name: Row of SHARED.
      required: Whether the command needs it.
      default: Default in place of that of the table; None keeps the table's.

    Returns:
      The FlagHolder.
    """
    row = SHARED[name]
    if required:
        REQUIRED.append(name)
    return row.define(name, row.default if default is None else default, row.help)


@contextlib.contextmanager
def group(title: str, **checks: ranges.Check) -> Iterator[None]:
    """Groups all flags defined in the block under one title of `--help`.

    Their values are checked when the command line is parsed.

    Args:
      title: The title; a second group of the same title extends the first.
      **checks: Flag -> check of its value, in place of that in `ranges.FLAGS`.

    Yields:
      Nothing.
    """
    before = set(flags.FLAGS)
    yield
    names = [name for name in flags.FLAGS if name not in before]
    GROUPS.setdefault(title, []).extend(names)
    for name in names:
        check = checks.get(name, ranges.FLAGS.get(name))
        flags.register_validator(name, functools.partial(_check, name, check))


def _check(name: str, check: ranges.Check | None, value: Any) -> bool:
    """Checks the value of a flag; absl puts the flag's name before the message."""
    flag = flags.FLAGS[name]
    if value is None or value == flag.default:
        return True
    if check is not None and not check.accepts(value):
        raise flags.ValidationError(check.problem(f"--{name}", value))
    # E.g. from a shell variable that is not set. Flags that are repeated for each text,
    # such as prompts, may be empty.
    is_list = isinstance(flag.parser, flags.BaseListParser)
    parts = value if is_list else [value]
    if not parts or any(isinstance(part, str) and not part.strip() for part in parts):
        raise flags.ValidationError("it is empty: give a value, or leave the flag out")
    return True


def renamed(
    old: str,
    new: str,
    use: str | None = None,
    translate: Callable[[Any], Any] | None = None,
) -> None:
    """Keeps the old name of a flag for one release, and prints a note when it is used.

    Args:
      old: The old name.
      new: The flag that replaces it, already defined.
      use: What to write now; `--new` if unset.
      translate: Maps the value of the old flag, a boolean, to that of the new one; if
        unset, the flags have the same values.
    """
    if translate is None:
        flags.DEFINE_alias(old, new)
    else:
        flags.DEFINE_bool(old, None, f"Use {use}.")
    _RENAMED[old] = _Renamed(new, use or f"--{new}", translate)


def apply_renamed() -> None:
    """Sets the new flags from values given under old names, after parsing."""
    for old, row in _RENAMED.items():
        if not flags.FLAGS[old].present:
            continue
        if row.translate is not None:
            setattr(flags.FLAGS, row.new, row.translate(flags.FLAGS[old].value))
        print(
            f"note: --{old} is now {row.use}; the next release drops the old name",
            file=sys.stderr,
        )


SHARED = {
    "workdir": Shared(
        flags.DEFINE_string, None, "Folder of the run, with its config and checkpoints."
    ),
    "outdir": Shared(flags.DEFINE_string, None, "Output folder."),
    "take_outdir": Shared(
        flags.DEFINE_bool,
        False,
        "Take over the folder of a command on another host that surely has ended.",
    ),
    "step": Shared(
        flags.DEFINE_string,
        None,
        "Checkpoint to use, a step or best; the newest by default.",
    ),
    "ema": Shared(
        flags.DEFINE_bool,
        True,
        "Use the moving average of the weights, if there is one; on by default.",
    ),
    "first_stage": Shared(
        flags.DEFINE_string, None, "Workdir of the first stage, if it has moved."
    ),
    "lpips_weights": Shared(
        flags.DEFINE_string,
        None,
        "File of LPIPS weights, or two with a comma between: VGG16 and linear heads.",
    ),
    "data_dir": Shared(
        flags.DEFINE_string,
        None,
        "Folder of prepared data sets; TFDS_DATA_DIR or ~/tensorflow_datasets.",
    ),
    "max_image_gb": Shared(
        flags.DEFINE_float,
        None,
        "Memory that reading one image may take, in 10^9 bytes; the config's if unset.",
    ),
    "split": Shared(
        flags.DEFINE_string, None, "Split of the data; the held-out one if unset."
    ),
    "image_size": Shared(flags.DEFINE_integer, None, "Side of the images in pixels."),
    "num_images": Shared(
        flags.DEFINE_integer,
        None,
        "Number of images, the first ones of the data.",
    ),
    "num_samples": Shared(flags.DEFINE_integer, None, "Number of samples."),
    "max_shapes": Shared(
        flags.DEFINE_integer, 4, "Largest number of shapes in a scene, 1 to 4."
    ),
    "batch_size": Shared(
        flags.DEFINE_integer,
        16,
        "Batch size, over all devices.",
    ),
    "seed": Shared(flags.DEFINE_integer, 0, "Seed of everything random."),
    "sampler": Shared(
        flags.DEFINE_string,
        None,
        "Row of SAMPLERS, e.g. ddim, plms, dpmpp_2m, unipc; the config's if unset.",
    ),
    "num_steps": Shared(
        flags.DEFINE_integer, None, "Sampling steps; the config's if unset."
    ),
    "eta": Shared(
        flags.DEFINE_float,
        None,
        "Fraction of fresh noise in each step, 0 to 1, for samplers that take it; 0 if "
        "unset for ddim and dpmpp_2m, 1 for euler_ancestral and dpmpp_2m_sde.",
    ),
    "guidance_scale": Shared(
        flags.DEFINE_string,
        None,
        "Classifier-free guidance scale, 1 is off; or one per condition, e.g. "
        "caption=5,depth=1.5. The config's if unset.",
    ),
}
