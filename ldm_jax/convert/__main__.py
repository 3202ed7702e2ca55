"""Converts models between this package, the original implementation and diffusers.

    python -m ldm_jax.convert model.ckpt runs/model --config=model.yaml
    python -m ldm_jax.convert runs/model exported.safetensors
    python -m ldm_jax.convert runs/model model_diffusers --to=diffusers

The source's format is recognised; the target's follows from its name: a file of weights
is the original's, a folder is a workdir, or diffusers' if the source is a workdir.
"""

from absl import app, flags

from ldm_jax import cli

_TO = flags.DEFINE_enum(
    "to", None, ["ldm_jax", "compvis", "diffusers"], "Format of the target."
)
_CONFIG = flags.DEFINE_string(
    "config", None, "YAML of the original; its structure is deduced where not given."
)
_RAW = flags.DEFINE_bool(
    "raw", False, "Take the trained weights and leave out their moving average."
)
_STEP = flags.DEFINE_integer(
    "step", None, "Checkpoint of a workdir; newest by default."
)
_NUM_HEADS = flags.DEFINE_integer("num_heads", None, "Attention heads of the U-Net.")
_HEAD_CHANNELS = flags.DEFINE_integer("head_channels", None, "Channels of one head.")
_PREDICTION_TYPE = flags.DEFINE_enum(
    "prediction_type",
    None,
    ["noise", "x0", "v"],
    "What the U-Net predicts, where the source does not say: v for 768-v.",
)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Side of the images in pixels.")


def main(argv):
    """Converts."""
    cli.start_jax()
    from ldm_jax.convert.formats import Options, convert
    from ldm_jax.errors import ConversionError

    if len(argv) != 3:
        raise ConversionError(
            f"give a source and a target: python -m ldm_jax.convert SRC DST; got "
            f"{len(argv) - 1} of them"
        )
    options = Options(
        config=_CONFIG.value,
        raw=_RAW.value,
        step=_STEP.value,
        num_heads=_NUM_HEADS.value,
        head_channels=_HEAD_CHANNELS.value,
        prediction_type=_PREDICTION_TYPE.value,
        image_size=_IMAGE_SIZE.value,
    )
    convert(argv[1], argv[2], _TO.value, options)


if __name__ == "__main__":
    app.run(cli.one_line_errors(main), flags_parser=cli.parse_flags)
