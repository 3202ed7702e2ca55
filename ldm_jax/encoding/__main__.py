r"""Encodes images once: training then reads latents and does not run the encoder.

    ldm-encode --config=shapes_class --config.first_stage.workdir=runs/autoencoder \
        --outdir=latents
    ldm-train --config=shapes_class --config.first_stage.workdir=runs/autoencoder \
        --config.data.source=latents --config.data.name=latents --workdir=runs/class

Takes the config of the stage to train: its first stage, its images, cropped at the
centre, and all inputs of `data.inputs`. `--outdir` gets a folder for each split,
`train` and `validation` (those of data.split and data.eval_split), each with a header,
`latents.json`, and shards in array_record's format. If it was interrupted, the same
command resumes, with the same result bit for bit.
"""

from absl import flags

from ldm_jax import cli
from ldm_jax.errors import ConfigError
from ldm_jax.files import check_outdir

# Folder of a set -> key of the section `data` that names its split.
_SPLITS = {"train": "split", "validation": "eval_split"}

with cli.group("what to encode"):
    _CONFIG = cli.config_flag("Config of the second stage to train, as for ldm-train.")
    _FIRST_STAGE = flags.DEFINE_string(
        "first_stage",
        None,
        "Workdir of the first stage; that of the config if unset.",
    )
    _SPLIT = flags.DEFINE_list(
        "split", list(_SPLITS), "Splits to encode: train, validation or both."
    )
    _MIRRORED = flags.DEFINE_bool(
        "mirrored",
        None,
        "Also encode each training image mirrored; data.flip if unset.",
    )

with cli.group("how to compute"):
    _BATCH_SIZE = flags.DEFINE_integer(
        "batch_size", 16, "Batch size, over the devices of a process."
    )
    _SEED = flags.DEFINE_integer(
        "seed", None, "Seed of random inputs; that of the config if unset."
    )

with cli.group("output"):
    _OUTDIR = cli.shared("outdir", required=True)
    _DTYPE = flags.DEFINE_enum(
        "dtype", "bfloat16", ["bfloat16", "float32"], "Type of the stored latents."
    )
    _TEXT_STATES = flags.DEFINE_bool(
        "text_states",
        False,
        "Also store the outputs of frozen text encoders: training with "
        "data.text_states=True then loads no encoder.",
    )
    _SHARD_SIZE = flags.DEFINE_integer("shard_size", 4096, "Images per shard.")
    _TAKE_OUTDIR = cli.shared("take_outdir")


def _main(argv: list[str]) -> None:
    """Encodes the splits."""
    del argv
    import jax

    from ldm_jax import checkpoint
    from ldm_jax.config import check_values, to_dict, upgrade_config
    from ldm_jax.data.inputs import make_inputs
    from ldm_jax.encoding.stream import Options
    from ldm_jax.encoding.text_states import require_captions
    from ldm_jax.encoding.write_set import make_writer
    from ldm_jax.images import pixels_of
    from ldm_jax.lock import hold_outdir
    from ldm_jax.store import as_path
    from ldm_jax.trained import (
        check_same_everywhere,
        load_first_stage,
        load_text_towers,
    )

    check_outdir(_OUTDIR.value)
    config, notes = upgrade_config(_CONFIG.value)
    config = check_values(config)
    if config.stage == "autoencoder":
        raise ConfigError(
            "--config is of a first stage: give that of the stage on its latents"
        )
    splits = _splits(config.data)
    workdir, step = _FIRST_STAGE.value, None
    if workdir is None:
        workdir, step = config.first_stage.workdir, config.first_stage.step
    if step is None and workdir not in ("", "identity"):
        step = checkpoint.common_step(workdir)
    count = pixels_of(config.data).count
    first = load_first_stage(workdir, step, image_channels=count)
    first.check_pixels(config.data)
    check_same_everywhere(first)
    devices = jax.local_device_count()
    options = Options(
        dtype=_DTYPE.value,
        mirrored=config.data.flip if _MIRRORED.value is None else _MIRRORED.value,
        batch_size=-(-_BATCH_SIZE.value // devices) * devices,
        shard_size=_SHARD_SIZE.value,
        seed=config.seed if _SEED.value is None else _SEED.value,
    )
    if _TEXT_STATES.value:
        towers = load_text_towers(config)
        require_captions(towers, make_inputs(config.data.get("inputs")))
        options = options._replace(towers=towers)
    write = make_writer(first, to_dict(config.data), options)
    outdir = as_path(_OUTDIR.value)
    with hold_outdir(outdir, _TAKE_OUTDIR.value):
        if not jax.process_index():
            for note in [*notes, *_notes(config.data)]:
                print(note)
        for name, split in splits.items():
            write(outdir / name, split)


def _splits(data):
    """Folder -> split of the data."""
    unknown = [name for name in _SPLIT.value if name not in _SPLITS]
    if unknown:
        raise ConfigError(
            f"--split={unknown[0]} is none of {', '.join(_SPLITS)}: these are what "
            "data.split and data.eval_split name"
        )
    chosen = {name: data.get(_SPLITS[name]) for name in _SPLIT.value}
    if flags.FLAGS["split"].present and not all(chosen.values()):
        raise ConfigError(
            "--split=validation: the config holds nothing out; set data.eval_split"
        )
    return {name: split for name, split in chosen.items() if split}


def _notes(data):
    """Notes on options of the config that have no effect on latents."""
    if data.crop != "center" or data.min_crop < 1:
        yield (
            f"note: images are cut at the centre; data.crop={data.crop} and "
            f"data.min_crop={data.min_crop:g} have no effect on latents"
        )
    if data.get("buckets"):
        yield "note: latents are of squares of data.image_size, without data.buckets"
    for key, entry in sorted(data.inputs.items()):
        if entry.get("dropout"):
            yield (
                f"note: data.inputs.{key}.dropout={entry.dropout:g} has no effect on "
                "what is stored: training on latents draws it at every step, as it "
                f"does conditions.{key}.dropout"
            )


def main() -> None:
    """Runs the command."""
    cli.run(_main, __doc__, lower="--batch_size or data.image_size")


if __name__ == "__main__":
    main()
