"""What the keys of a config and the flags of the commands may be, in one table.

SECTIONS says it of each section of a config, FLAGS of the commands' flags; a class that
is a choice in a section may say it of its own fields (`field_ranges`). A row is a
Check; what needs more than the value itself (choices that stand in tables of their own,
what fits together) is checked where the section is read, by `config.build` and by the
constructors that it calls.

The largest values are far beyond what is useful: they keep a slip of the finger from
taking all memory or a week.

| module | what |
| --- | --- |
| `checks` | the kinds of checks |
| `dtypes`, `shared` | those that several sections have in common |
| `data_sections`, `networks`, `training_sections`, `sample_section` | rows by section |
| `command_flags` | rows of flags |
| `table` | all sections, and who looks into them |
"""

from ldm_jax.ranges.checks import (
    Check,
    check_value,
    local_place,
    per_level,
    place,
    read_whole,
    real,
    several,
    shown,
    text,
    whole,
)
from ldm_jax.ranges.command_flags import FLAGS
from ldm_jax.ranges.dtypes import dtype_name
from ldm_jax.ranges.networks import LATENTS, UNET
from ldm_jax.ranges.sample_section import SAMPLE
from ldm_jax.ranges.table import SECTIONS, check_fields, check_section, find
from ldm_jax.ranges.training_sections import EVAL, TRAIN

__all__ = [
    "Check",
    "EVAL",
    "FLAGS",
    "LATENTS",
    "SAMPLE",
    "SECTIONS",
    "TRAIN",
    "UNET",
    "check_fields",
    "check_section",
    "check_value",
    "dtype_name",
    "find",
    "local_place",
    "per_level",
    "place",
    "read_whole",
    "real",
    "several",
    "shown",
    "text",
    "whole",
]
