"""Layout-to-image models at 256 px (Tables 9, 15 and 17 of the paper).

    python train.py --config=configs/layout_to_image.py:openimages \
        --workdir=runs/layout --config.first_stage.workdir=runs/vq_f4
    python sample.py --workdir=runs/layout --outdir=samples --layout=layout.json \
        --num_samples=4

row         first stage  U-Net        conditions  batch      steps  learning rate
openimages  vq:f4        246,277,379  54,656,000     24  4,400,000  4.8e-5
coco        vq:f8        312,241,540  54,656,000     48    170,000  4.8e-5

The first stage is a row of `autoencoder_vq.py`; the columns "U-Net" and "conditions"
are the parameters of the U-Net and of the transformer that encodes the layout.  A
layout is up to 30 boxes as 92 tokens: for each its class and two corners on a grid of
90 x 90, and the crop.

Published:
openimages (306 M, with a layer of CompVis's that is not used): FID 32.02, IS 15.92
  on 2048 images of its validation set; 200 DDIM steps, eta 0.
coco: FID 42.06 on the 2048 images of the Segmentation Challenge; 100 DDIM steps.  The
  paper counts 345 M parameters, which do not follow from its own hyperparameters.  Its
  weights were not released; loss and noise schedule are those of openimages.
openimages, fine-tuned on COCO (`--config.data.name=coco/2017
  --config.train.init_from=runs/layout`): FID 40.91; 200 DDIM steps.

Both are prepared TensorFlow data sets (open_images_v4/300k, coco/2017), whose classes
are numbered differently from those of the released model.  The paper trained on one
A100.  Variants: a row, `tiny` (a toy model for a laptop) or both: `coco,tiny`.
"""

from configs import published

_COMMON = dict(
    inputs=dict(boxes=dict(kind="layout", vocab_size=8192, max_objects=30)),
    conditions=dict(
        boxes=dict(
            kind="layout", vocab_size=8192, max_length=92, features=512, num_layers=16
        ),
    ),
    schedule=dict(beta_end=0.0205),
    loss=dict(loss_type="l1"),
)

# How the rows differ.  The first is the default.
ROWS = {
    "openimages": dict(
        _COMMON,
        data=dict(name="open_images_v4/300k", flip=True),
        backbone=dict(
            channels=128,
            channel_mult=(1, 2, 3, 4),
            attention_factors=(2, 4, 8),
            num_heads=1,
            transformer_depth=3,
        ),
        train=dict(batch_size=24, num_steps=4_400_000, learning_rate=4.8e-5),
        sample=dict(num_steps=200, eta=0.0),
    ),
    "coco": dict(
        _COMMON,
        data=dict(name="coco/2017", flip=True),
        backbone=dict(
            channels=192,
            channel_mult=(1, 2, 4),
            attention_factors=(1, 2, 4),
            num_heads=1,
            transformer_depth=2,
            dropout=0.1,
        ),
        train=dict(batch_size=48, num_steps=170_000, learning_rate=4.8e-5),
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
