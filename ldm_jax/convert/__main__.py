"""Converts models between this package, CompVis's implementation and diffusers.

    python -m ldm_jax.convert model.ckpt runs/model --config=model.yaml
    python -m ldm_jax.convert runs/model exported.safetensors
    python -m ldm_jax.convert runs/model model_diffusers --to=diffusers

The source's format is recognised; the target's follows from its name: a file of weights
is CompVis's, a folder is a workdir, or diffusers' if the source is a workdir. Any other
file name, e.g. out.txt, is an error without --to.
"""

from absl import flags

from ldm_jax import cli

with cli.group("what to convert"):
    _TO = flags.DEFINE_enum(
        "to", None, ["ldm_jax", "compvis", "diffusers"], "Format of the target."
    )
    _STEP = cli.shared("step")
    _EMA = cli.shared("ema")
    _VERIFY = flags.DEFINE_bool(
        "verify",
        None,
        "Read an export back and compare it with the model; the default if it is "
        "small.",
    )

with cli.group("what the source does not say"):
    _CONFIG = flags.DEFINE_string(
        "config",
        None,
        "YAML of a CompVis model; its structure is inferred if unset.",
    )
    _NUM_HEADS = flags.DEFINE_integer(
        "num_heads", None, "Attention heads of the U-Net."
    )
    _HEAD_CHANNELS = flags.DEFINE_integer(
        "head_channels", None, "Channels of one head."
    )
    _PREDICTION_TYPE = flags.DEFINE_enum(
        "prediction_type",
        None,
        ["noise", "x0", "v"],
        "What the U-Net predicts: v for 768-v.",
    )
    _IMAGE_SIZE = cli.shared("image_size")

with cli.group("which part of the source"):
    _ONLY = flags.DEFINE_enum(
        "only", None, ["first_stage"], "Convert only the autoencoder of a whole model."
    )
    _VARIANT = flags.DEFINE_string(
        "variant",
        None,
        "Variant of the files of diffusers: fp16 for model.fp16.safetensors.",
    )

cli.renamed("raw", "ema", use="--noema", translate=lambda raw: not raw)


def _main(argv: list[str]) -> None:
    """Converts a model."""
    from ldm_jax import ranges
    from ldm_jax.convert.formats import Options, convert
    from ldm_jax.errors import ConversionError, LeftOut

    if len(argv) != 3:
        raise ConversionError(
            f"give a source and a target: python -m ldm_jax.convert SRC DST; got "
            f"{len(argv) - 1} of them"
        )
    for name, path in zip(("the source", "the target"), argv[1:], strict=True):
        ranges.check_value(ranges.place(), path, name)
    options = Options(
        config=_CONFIG.value,
        raw=not _EMA.value,
        step=_STEP.value,
        num_heads=_NUM_HEADS.value,
        head_channels=_HEAD_CHANNELS.value,
        prediction_type=_PREDICTION_TYPE.value,
        image_size=_IMAGE_SIZE.value,
        verify=_VERIFY.value,
        only=_ONLY.value,
        variant=_VARIANT.value,
    )
    left_out = convert(argv[1], argv[2], _TO.value, options)
    if any(left_out.values()):
        raise LeftOut(
            f"{argv[2]} is written, but without {', '.join(left_out)}: its images may "
            "differ from those of the source"
        )
    if left_out:
        print(f"left out, which changes no image: {', '.join(left_out)}")


def main() -> None:
    """Runs the command."""
    cli.run(_main, __doc__, arguments="SOURCE TARGET")


if __name__ == "__main__":
    main()
