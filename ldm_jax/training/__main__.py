"""Trains one stage of a latent diffusion model.

    python train.py --config=configs/shapes_autoencoder.py --workdir=runs/autoencoder

The same command goes on where a run was cut.  Any key of the config can be changed on
the command line, after `--config`:  --config.train.batch_size=32
"""

from absl import app, flags
from ml_collections import config_flags

from ldm_jax import cli

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File with get_config(); `file.py:tiny` makes a toy of it."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
    "allow_config_change",
    False,
    "Go on although the config differs from the one the checkpoint records.",
)
flags.mark_flags_as_required(["config", "workdir"])


def _main(argv):
    """Starts JAX and runs the loop."""
    del argv
    cli.start_jax()
    from ldm_jax.training.loop import run

    run(_CONFIG.value, _WORKDIR.value, _ALLOW_CONFIG_CHANGE.value)


def main():
    """The command."""
    app.run(cli.one_line_errors(_main), flags_parser=cli.parse_flags)


if __name__ == "__main__":
    main()
