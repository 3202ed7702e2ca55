"""Tables of the valid values of config keys and command flags.

SECTIONS has the checks of each section of a config, FLAGS those of the commands' flags;
a class that is a choice in a section may define those of its own fields
(`field_ranges`). A row is a Check. Checks that need more than the value itself (choices
from other tables, consistency between keys) are made where the section is read, by
`config.build` and by the constructors that it calls.

The largest values are far beyond what is useful: they prevent a typo from using up all
memory or a week.

| module | what |
| --- | --- |
| `checks` | the kinds of checks |
| `dtypes`, `shared` | checks that several sections share |
| `data_sections`, `networks`, `training_sections`, `sample_section` | rows by section |
| `command_flags` | rows of flags |
| `table` | all sections, and functions that check values |
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
