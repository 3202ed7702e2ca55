"""First stage KL-f4 on `shapes` at 64 px, scenes of up to four shapes.

    python -m ldm_jax.data.shapes --image_size=64 --num_train=20000
    python train.py --config=configs/shapes_kl_f4.py --workdir=runs/shapes_kl_f4
    python -m ldm_jax.evaluation --workdir=runs/shapes_kl_f4 --outdir=runs/evaluation

Made for two CPU cores and a quarter of an hour; see the README for its results.
Variants: `:decoder` (fine-tunes the decoder alone, see `train.init_from`), `:tiny`
(four steps, for tests).
"""

from configs import common, shapes_autoencoder


def get_config(variant=""):
    """Makes the config.

    Args:
      variant: "", "decoder", "tiny" or both.

    Returns:
      ConfigDict.
    """
    _, words = common.parse_variant(variant)
    config = shapes_autoencoder.get_config()
    config.data.update(name="shapes/64", image_size=64)
    # Ramped up, so that the start of the discriminator costs little PSNR.
    config.loss.update(disc_start=1600, disc_ramp_steps=300)
    config.train.update(
        num_steps=2200, eval_every=550, preview_every=550, checkpoint_every=550
    )
    return common.vary_autoencoder(config, words)
