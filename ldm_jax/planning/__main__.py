r"""Plans a run: memory, arithmetic, time and cost, without a device.

    ldm-plan --config=imagenet_class:f4 --first_stage=autoencoder_vq:f4 --chip=H100
    ldm-plan --config=text_to_image --first_stage=autoencoder_kl:f8 \
        --mesh=data=4,fsdp=2 --chip=H100 --mfu=0.4 --price=2.5

Any key of the config can be changed on the command line as for train.py.  Neither
weights nor data are read, and nothing is compiled; docs/planning.md says how the
numbers come about, and how far they were from what compilers and devices said.
"""

from absl import flags
from ml_collections import ConfigDict

from ldm_jax import cli
from ldm_jax.errors import ConfigError

with cli.group("what to plan"):
    _CONFIG = cli.config_flag("Config of the run, as for train.py.")
    _FIRST_STAGE = flags.DEFINE_string(
        "first_stage",
        None,
        "Config that trains the first stage, as autoencoder_kl:f8, or its workdir; "
        "first_stage.workdir if unset.",
    )
    _NUM_CLASSES = flags.DEFINE_integer(
        "num_classes", None, "Classes of the data, where the config leaves them open."
    )
    _FEATURE = flags.DEFINE_multi_string(
        "feature",
        [],
        "KEY=SHAPE: shape of an input that the data alone have, as embedding=20x768.",
    )

with cli.group("on what"):
    _MESH = flags.DEFINE_string(
        "mesh", None, "As data=8,fsdp=4; train.mesh of the config if unset."
    )
    _CHIP = flags.DEFINE_string(
        "chip", "H100", "A100-40, A100-80, H100, H200, B200, v4, v5e, v5p, v6e or v7x."
    )
    _MFU = flags.DEFINE_float(
        "mfu", 0.35, "Share of the chips' peak in bfloat16 that the run reaches."
    )
    _PRICE = flags.DEFINE_float(
        "price", None, "Price of an hour of one chip, in any currency."
    )

with cli.group("output"):
    _JSON = flags.DEFINE_string("json", None, "File to write all numbers to.")


def _read_mesh(text: str, train: ConfigDict) -> None:
    """Reads `--mesh` into the config."""
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in ("data", "fsdp") or not size.isdigit() or not int(size):
            raise ConfigError(
                f"--mesh={text} must give the sizes of its axes, as data=8,fsdp=4"
            )
        train.mesh[axis] = int(size)


def _main(argv: list[str]) -> None:
    """Makes the plan and prints it."""
    del argv
    import jax

    # Nothing is computed: a device shall not be taken for it.
    jax.config.update("jax_platforms", "cpu")
    from ldm_jax.config import check_values, upgrade_config
    from ldm_jax.files import write_json
    from ldm_jax.planning.abstract import Given
    from ldm_jax.planning.examples import read_features
    from ldm_jax.planning.page import page
    from ldm_jax.planning.plan import Options, make_mesh, make_plan
    from ldm_jax.training.throughput import chip_named

    config = check_values(upgrade_config(_CONFIG.value)[0])
    chip = chip_named(_CHIP.value)
    if _MESH.value is not None:
        _read_mesh(_MESH.value, config.train)
    options = Options(
        chip=chip,
        chip_name=_CHIP.value,
        mesh=make_mesh(**config.train.mesh),
        mfu=_MFU.value,
        price=_PRICE.value,
    )
    features = read_features(_FEATURE.value)
    given = Given(_FIRST_STAGE.value, _NUM_CLASSES.value, features)
    plan = make_plan(config, given, options)
    print(page(plan))
    if _JSON.value is not None:
        write_json(_JSON.value, plan.to_json())


def main() -> None:
    """Runs the command."""
    cli.run(_main, __doc__, uses_jax=False)


if __name__ == "__main__":
    main()
