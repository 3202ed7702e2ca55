"""The part common to the tasks on `shapes`: scenes of one to four shapes at 32 px.

Each is the demo's model (`shapes_class.py`) with other conditions. All of them use one
first stage, which, like each of them, trains in minutes on two CPU cores:

    python -m ldm_jax.data.shapes --image_size=32 --num_train=20000
    python train.py --config=configs/shapes_autoencoder.py --workdir=runs/scenes \
        --config.data.name=shapes/32

In all tasks conditions are dropped with probability 0.1, which makes classifier-free
guidance possible, and the comparison with unconditional samples.
"""

from ml_collections import ConfigDict

from configs import common, shapes_class


def config(
    variant, *, inputs, conditions, guidance_scale=1.0, num_steps=1800, **backbone
):
    """Makes the config of a task on `shapes/32`.

    Args:
      variant: "" or "tiny".
      inputs: Section `data.inputs`.
      conditions: Section `conditions`.
      guidance_scale: Guidance scale of previews and samples.
      num_steps: Length of the training.
      **backbone: Fields of the backbone that the conditions need.

    Returns:
      A ConfigDict.

    Raises:
      ValueError: On an unknown variant.
    """
    _, words = common.parse_variant(variant, words=("tiny",))
    config = shapes_class.get_config()
    config.data.name = "shapes/32"
    config.data.inputs = ConfigDict(inputs)
    conditions = {key: dict(entry, dropout=0.1) for key, entry in conditions.items()}
    config.conditions = ConfigDict(conditions)
    config.backbone.update(backbone)
    config.sample.guidance_scale = guidance_scale
    config.train.num_steps = num_steps
    if words:
        common.shrink_diffusion(config)
    return config


def caption():
    """Captions of `shapes`, at most 52 tokens with punctuation, start and end."""
    return dict(kind="caption", tokenizer="shapes", max_length=52)


def tokens(kind):
    """A transformer that encodes captions or layouts, trained with the denoiser."""
    return dict(
        kind=kind,
        vocab_size=common.placeholder(int),
        max_length=common.placeholder(int),
        features=64,
        num_layers=2,
        num_heads=4,
        head_channels=16,
    )
