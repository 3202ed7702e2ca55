"""Command-line code common to all commands: flags, grouped help, one-line errors.

A command defines its flags in groups, those that it shares with others from one table,
and calls `run`:

    with cli.group("output"):
        _OUTDIR = cli.shared("outdir", required=True)

    def main() -> None:
        cli.run(_main, __doc__)
"""

from ldm_jax.cli.configs import config_names, find_config, load_config
from ldm_jax.cli.flags import group, renamed, shared
from ldm_jax.cli.overrides import config_flag
from ldm_jax.cli.run import run

__all__ = [
    "config_flag",
    "config_names",
    "find_config",
    "group",
    "load_config",
    "renamed",
    "run",
    "shared",
]
