"""Trains one stage of a latent diffusion model.

    python train.py --config=configs/shapes_autoencoder.py --workdir=runs/autoencoder

The same command continues where a run was cut.  Keys of the config can be changed on
the command line, after `--config`:  --config.train.batch_size=32
"""

from absl import flags

from ldm_jax import cli

with cli.group("what to train"):
    _CONFIG = cli.config_flag(
        "Name of a config, as shapes_class, or path of a file with get_config(); "
        "`shapes_class:tiny` makes a toy of it."
    )
    _WORKDIR = cli.shared("workdir", required=True)
    _ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
        "allow_config_change",
        False,
        "Resume although the config differs from that in the checkpoint.",
    )
    _TAKE_WORKDIR = flags.DEFINE_bool(
        "take_workdir",
        False,
        "Take over the workdir of a run on another host that surely has ended.",
    )

_MEMORY = (
    "train.batch_size or data.image_size, or eval.batch_size where it is measured, "
    "raise train.accumulate_steps, set backbone.remat=True, or split large parameters "
    "with train.mesh.fsdp"
)


def _main(argv: list[str]) -> None:
    """Runs the loop."""
    del argv
    from ldm_jax.training.loop import run

    run(
        _CONFIG.value,
        _WORKDIR.value,
        _ALLOW_CONFIG_CHANGE.value,
        _TAKE_WORKDIR.value,
    )


def main() -> None:
    """Runs the command."""
    cli.run(_main, __doc__, lower=_MEMORY, stops_together=True)


if __name__ == "__main__":
    main()
