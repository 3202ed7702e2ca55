"""First stage VQ-f4 with 256 codes on `shapes` at 64 px, scenes of up to four shapes.

    python -m ldm_jax.data.shapes --image_size=64 --num_train=20000
    python train.py --config=configs/shapes_vq_f4.py --workdir=runs/shapes_vq_f4
    python -m ldm_jax.evaluation --workdir=runs/shapes_vq_f4 --outdir=runs/evaluation

Made for two CPU cores and a quarter of an hour; see the README for its results.  The
same as `shapes_kl_f4.py` except for the codebook.  Variants: `:decoder` (fine-tunes the
decoder alone, see `train.init_from`), `:tiny` (four steps, for tests).
"""

from configs import common, shapes_kl_f4


def get_config(variant=""):
    """Makes the config.

    Args:
      variant: "", "decoder", "tiny" or both.

    Returns:
      ConfigDict.
    """
    _, words = common.parse_variant(variant)
    config = shapes_kl_f4.get_config()
    config.first_stage.update(kind="vq", num_codes=256, quantizer="nearest")
    # Codes are moving averages of their latents, the commitment loss has a small
    # weight, and codes that are hardly used are restarted at a current latent: 2.6 dB
    # more after 550 steps than with CompVis's loss and restarts alone.
    config.loss.update(
        codebook_ema_decay=0.99, codebook_legacy=False, restart_threshold=0.1
    )
    return common.vary_autoencoder(config, words)
