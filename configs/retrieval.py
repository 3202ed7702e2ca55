"""Retrieval-augmented diffusion at 768 px (Blattmann et al. 2022, RDM).

    python train.py --config=configs/retrieval.py:768 --workdir=runs/rdm \
        --config.first_stage.workdir=runs/kl_f16 --config.data.name=YOUR_DATA_SET
    python sample.py --workdir=runs/rdm --outdir=samples --features=embeddings.npy

row  first stage  U-Net          conditions  batch    steps  learning rate
768  kl:f16       1,335,480,400           0    256  500,000  1e-4

The first stage is a row of `autoencoder_kl.py`; the columns "U-Net" and "conditions"
are numbers of parameters.  The denoiser attends to CLIP embeddings (ViT-L/14): in
training those of the image's nearest neighbours in a large collection, at sampling
those of a caption, of images, or both.

Published: images, sampled with guidance scale 5; the learning rate is the released one,
batch size and steps are not published.  The latents' scaling factor of the released
model is 0.22765929.

The data are a prepared TensorFlow data set with images and a float feature `embedding`
[k, 768], the embeddings of each image's neighbours; for sampling, give them as an array
[samples, k, 768].  Variants: a row, `tiny` (a toy model for a laptop, which attends to
boxes) or both: `768,tiny`.
"""

from configs import published

ROWS = {
    "768": dict(
        data=dict(image_size=768, flip=True),
        inputs=dict(embedding=dict(kind="feature", feature="embedding")),
        # Zeros are the null condition of classifier-free guidance.
        conditions=dict(embedding=dict(kind="raw", slot="context", dropout=0.1)),
        backbone=dict(
            channels=448,
            channel_mult=(1, 2, 3, 4),
            attention_factors=(1, 2, 4),
            head_channels=32,
            transformer_depth=1,
        ),
        schedule=dict(beta_end=0.015),
        train=dict(batch_size=256, num_steps=500_000, learning_rate=1e-4),
        sample=dict(guidance_scale=5.0),
    ),
}


def get_config(variant=""):
    """Makes the config.

    Args:
      variant: The row of ROWS, "tiny" or both.

    Returns:
      ConfigDict.
    """
    return published.diffusion(variant, ROWS)
