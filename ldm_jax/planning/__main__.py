r"""Plans a run: memory, FLOPs, time and cost, without a device.

    ldm-plan --config=imagenet_class:f4 --first_stage=autoencoder_vq:f4 --chip=H100
    ldm-plan --config=text_to_image --first_stage=autoencoder_kl:f8 \
        --mesh=data=4,fsdp=2 --chip=H100 --mfu=0.4 --price=2.5

Keys of the config can be changed on the command line as for train.py.  Neither
weights nor data are read; docs/planning.md explains how the numbers are computed, and
compares them with those of compilers and devices.

With --compile the programs of the run are compiled for the devices of this machine and
stored, so that train.py with the same config starts without compiling:

    ldm-plan --config=shapes_class --first_stage=shapes_autoencoder --num_classes=8 \
        --compile
"""

import dataclasses

from absl import flags
from ml_collections import ConfigDict

from ldm_jax import cli
from ldm_jax.chips import CHIPS, chip_named
from ldm_jax.errors import ConfigError
from ldm_jax.ranges import read_whole

with cli.group("what to plan"):
    _CONFIG = cli.config_flag("Config of the run, as for train.py.")
    _FIRST_STAGE = flags.DEFINE_string(
        "first_stage",
        None,
        "Config of the first stage, e.g. autoencoder_kl:f8, or its workdir; "
        "first_stage.workdir if unset.",
    )
    _NUM_CLASSES = flags.DEFINE_integer(
        "num_classes", None, "Number of classes, if the config leaves it open."
    )
    _FEATURE = flags.DEFINE_multi_string(
        "feature",
        [],
        "KEY=SHAPE of an input that only the data have, e.g. embedding=20x768.",
    )

with cli.group("on what"):
    _MESH = flags.DEFINE_string(
        "mesh", None, "As data=8,fsdp=4; train.mesh of the config if unset."
    )
    _CHIP = flags.DEFINE_string("chip", "H100", f"One of {', '.join(CHIPS)}.")
    _MFU = flags.DEFINE_float(
        "mfu", 0.35, "Fraction of the chips' peak in bfloat16 that the run reaches."
    )
    _PRICE = flags.DEFINE_float(
        "price", None, "Price of an hour of one chip, in any currency."
    )

with cli.group("output"):
    _COMPILE = flags.DEFINE_bool(
        "compile",
        False,
        "Compile the run's programs for the available accelerators, or else for as "
        "many CPU devices as the mesh has, cache them for train.py, show their memory.",
    )
    _JSON = flags.DEFINE_string("json", None, "File to write all numbers to.")


def _read_mesh(text: str, train: ConfigDict) -> None:
    """Sets the mesh of the config from `--mesh`."""
    axes = {"data", "fsdp"}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        count = read_whole(size, 1)
        if axis not in axes or count is None:
            rest = "; a plan counts no devices, of which -1 is the rest"
            raise ConfigError(
                f"--mesh={text} must give the numbers of devices along its axes, as "
                f"data=8,fsdp=4{rest if size == '-1' else ''}"
            )
        axes.remove(axis)
        train.mesh[axis] = count


def _main(argv: list[str]) -> None:
    """Makes the plan, compiles the programs with --compile, and prints both."""
    del argv
    import jax

    if not _COMPILE.value:
        # Nothing is computed, so no accelerator is taken for it.
        jax.config.update("jax_platforms", "cpu")
    from ldm_jax.config import check_values, upgrade_config
    from ldm_jax.files import check_outfile, write_json
    from ldm_jax.planning.abstract import Given, make_planned
    from ldm_jax.planning.ahead import compile_ahead, find_mesh
    from ldm_jax.planning.examples import read_features
    from ldm_jax.planning.page import page, programs_page
    from ldm_jax.planning.plan import Options, make_mesh, make_plan

    # Before planning and compiling, whose results would be lost.
    if _JSON.value is not None:
        check_outfile(_JSON.value, "json")
    config = check_values(upgrade_config(_CONFIG.value)[0])
    chip = chip_named(_CHIP.value)
    if _MESH.value is not None:
        _read_mesh(_MESH.value, config.train)
    mesh = find_mesh(config.train.mesh) if _COMPILE.value else None
    options = Options(
        chip=chip,
        chip_name=_CHIP.value,
        mesh=make_mesh(**(config.train.mesh if mesh is None else mesh.shape)),
        mfu=_MFU.value,
        price=_PRICE.value,
    )
    features = read_features(_FEATURE.value)
    given = Given(_FIRST_STAGE.value, _NUM_CLASSES.value, features)
    plan = make_plan(config, given, options)
    found, main = plan.to_json(), mesh is None or jax.process_index() == 0
    if main:
        print(page(plan), flush=True)
    if mesh is not None:
        # Programs are stored however quickly they are compiled.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        planned = make_planned(config, given)
        programs = compile_ahead(planned, mesh, config.train.batch_size)
        found["compiled"] = [dataclasses.asdict(program) for program in programs]
        if main:
            print(programs_page(plan, mesh, programs))
    if _JSON.value is not None and main:
        write_json(_JSON.value, found)


def main() -> None:
    """Runs the command."""
    cli.run(_main, __doc__)


if __name__ == "__main__":
    main()
