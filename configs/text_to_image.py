"""Text-to-image models at 256 px (Tables 2, 15 and 17 of the paper).

    python train.py --config=configs/text_to_image.py:laion --workdir=runs/text \
        --config.first_stage.workdir=runs/kl_f8
    python sample.py --workdir=runs/text --outdir=samples --num_samples=4 \
        --prompt="a virus monster is playing guitar, oil on canvas" --guidance_scale=5

row         first stage  U-Net        conditions   batch    steps  learning rate
laion       kl:f8        872,300,484  542,895,360    680  390,000  1e-4
conceptual  vq:f4        403,623,939  166,590,080     28  390,000  5.6e-5

The first stage is a row of `autoencoder_kl.py` or `autoencoder_vq.py`; the columns
"U-Net" and "conditions" are the parameters of the U-Net and of the transformer that
encodes the captions.  Both are trained jointly from scratch, on the token ids of BERT's
tokenizer.

Published:
laion (1.45 B, with the output layer that CompVis's transformer has and does not
  use): on 30,000 captions of COCO FID 23.31, IS 20.03; with guidance scale 1.5 FID
  12.63, IS 30.29.  250 DDIM steps.
conceptual (trained on LAION first): FID 16.79, IS 13.89 on Conceptual Captions; 100
  DDIM steps, eta 0.  Its steps and number of accelerators are not published: the batch
  size is CompVis's for one accelerator, the steps are those of laion.

laion is the prepared TensorFlow data set laion400m/images; conceptual is a folder
conceptual_captions in `--config.data.data_dir` with a caption `x.txt` beside each image
`x.jpg`.  The dropout of captions is for guidance.  Variants: a row, `tiny` (a toy model
for a laptop) or both: `laion,tiny`.
"""

from configs import published


def _caption(features):
    """The transformer of a row: 32 layers of this width."""
    return dict(
        inputs=dict(
            caption=dict(kind="caption", tokenizer="bert-base-uncased", max_length=77)
        ),
        conditions=dict(
            caption=dict(
                kind="text",
                vocab_size=30522,
                max_length=77,
                features=features,
                num_layers=32,
                null_ids=(101, 102, 0),
                dropout=0.1,
            ),
        ),
    )


# How the rows differ.  The first is the default.
ROWS = {
    "laion": dict(
        _caption(1280),
        data=dict(
            name="laion400m/images",
            split="train[10000:]",
            eval_split="train[:10000]",
        ),
        backbone=dict(
            channels=320,
            channel_mult=(1, 2, 4, 4),
            attention_factors=(1, 2, 4),
            num_heads=8,
            transformer_depth=1,
        ),
        schedule=dict(beta_start=0.00085, beta_end=0.012),
        train=dict(batch_size=680, num_steps=390_000, learning_rate=1e-4),
        sample=dict(num_steps=250, guidance_scale=1.5),
    ),
    "conceptual": dict(
        _caption(640),
        data=dict(source="folder", name="conceptual_captions"),
        backbone=dict(
            channels=192,
            channel_mult=(1, 2, 3, 5),
            attention_factors=(2, 4, 8),
            num_heads=1,
            transformer_depth=1,
        ),
        train=dict(batch_size=28, num_steps=390_000, learning_rate=5.6e-5),
        sample=dict(num_steps=100, eta=0.0),
    ),
}


def get_config(variant=""):
    """Makes the config.

    Args:
      variant: A row of ROWS, "tiny" or both.

    Returns:
      ConfigDict.
    """
    return published.diffusion(variant, ROWS)
