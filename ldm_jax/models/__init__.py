"""Networks: linen modules on NHWC, whose sizes are fields.

Parameters are float32, `dtype` is the compute type; norms, softmax and statistics are
float32. Nothing here depends on configs, data or files.

- `layers.py`: dense, convolutions, norms, residual blocks, resampling, embedding of
  timesteps.
- `operations/`: group normalisation, attention and other operations, as functions with
  custom gradients.
- `attention.py`: attention, its blocks on feature maps, and transformer blocks with a
  context.
- `resize.py`: rescaling of maps like PyTorch, as matrix products.
- `backbones.py`: the table BACKBONES of denoisers, and their interface; `unet.py` is
  the paper's.
- `first_stages.py`: the table FIRST_STAGES, and their interface; `autoencoder.py` holds
  encoder and decoder, `quantizer.py` the codebook.
- `discriminator.py`, `lpips.py`: the networks in the loss of a first stage.
- `classifier.py`: the classifier of noisy latents, for classifier guidance.
- `text_encoder.py`, `image_encoder.py`: transformers for conditioners, of token ids and
  of images.
"""
