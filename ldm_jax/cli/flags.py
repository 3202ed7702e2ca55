"""Flags of the commands: those that several share, their groups, their old names."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from absl import flags

# Title -> names of the flags defined in it, both in the order of definition.
GROUPS: dict[str, list[str]] = {}

# Names of flags that must be given.
REQUIRED: list[str] = []

# Old name -> what stands for it now.
_RENAMED: dict[str, "_Renamed"] = {}


class _Renamed(NamedTuple):
    new: str
    use: str
    translate: Callable[[Any], Any] | None


class Shared(NamedTuple):
    """A flag of several commands.

    Attributes:
      define: Function of absl that defines flags of its type.
      default: Value where a command gives no default of its own.
      help: What `--help` says.
      limits: Further arguments of `define`.
    """

    define: Callable[..., flags.FlagHolder]
    default: Any
    help: str
    limits: dict[str, Any] = {}


def shared(name: str, *, required: bool = False, **changes: Any) -> flags.FlagHolder:
    """Defines a flag of the table SHARED for this command.

    Args:
      name: Row of SHARED.
      required: Whether the command needs it.
      **changes: `default`, and arguments of absl such as `lower_bound`.

    Returns:
      The holder of the flag.
    """
    row = SHARED[name]
    default = changes.pop("default", row.default)
    if required:
        REQUIRED.append(name)
    return row.define(name, default, row.help, **row.limits | changes)


@contextlib.contextmanager
def group(title: str) -> Iterator[None]:
    """Puts all flags that are defined inside under one title of `--help`.

    Args:
      title: The title; a second group of this title adds to the first.

    Yields:
      Nothing.
    """
    before = set(flags.FLAGS)
    yield
    names = [name for name in flags.FLAGS if name not in before]
    GROUPS.setdefault(title, []).extend(names)


def renamed(
    old: str,
    new: str,
    use: str | None = None,
    translate: Callable[[Any], Any] | None = None,
) -> None:
    """Keeps the old name of a flag for one release, with a note where it is used.

    Args:
      old: The old name.
      new: The flag, defined before, that took its place.
      use: What to write now; `--new` if unset.
      translate: Value of the old flag, a switch, -> value of the new; the same if
        unset.
    """
    if translate is None:
        flags.DEFINE_alias(old, new)
    else:
        flags.DEFINE_bool(old, None, f"Use {use}.")
    _RENAMED[old] = _Renamed(new, use or f"--{new}", translate)


def apply_renamed() -> None:
    """Carries what was given under old names over to the new ones, after parsing."""
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
    "outdir": Shared(flags.DEFINE_string, None, "Folder of what the command writes."),
    "step": Shared(
        flags.DEFINE_integer, None, "Checkpoint to use; the newest by default."
    ),
    "ema": Shared(
        flags.DEFINE_bool,
        True,
        "Use the moving average of the weights, where there is one; on by default.",
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
        "Where prepared data sets lie; TFDS_DATA_DIR or ~/tensorflow_datasets.",
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
        {"lower_bound": 1},
    ),
    "num_samples": Shared(
        flags.DEFINE_integer, None, "Number of samples.", {"lower_bound": 1}
    ),
    "max_shapes": Shared(
        flags.DEFINE_integer, 4, "Largest number of shapes in a scene, 1 to 4."
    ),
    "batch_size": Shared(
        flags.DEFINE_integer,
        16,
        "Images at a time, over all devices.",
        {"lower_bound": 1},
    ),
    "seed": Shared(flags.DEFINE_integer, 0, "Seed of all that is drawn at random."),
    "sampler": Shared(
        flags.DEFINE_string,
        None,
        "A row of SAMPLERS, as ddim, plms, dpmpp_2m, unipc; the config's if unset.",
    ),
    "num_steps": Shared(
        flags.DEFINE_integer, None, "Sampling steps; the config's if unset."
    ),
    "guidance_scale": Shared(
        flags.DEFINE_string,
        None,
        "Scale of classifier-free guidance, 1 is off; or one per condition, as "
        "caption=5,depth=1.5. The config's if unset.",
    ),
}
