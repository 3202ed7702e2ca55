"""Networks: linen modules on NHWC, each of which takes its sizes as fields.

Parameters are float32, `dtype` is the compute type; norms, softmax and statistics are
float32. Nothing here knows of configs, data or files.

- `layers.py`: dense, convolutions, norms, residual blocks, resampling, embedding of
  timesteps.
- `operations/`: group normalisation and the softmax of attention, as functions with
  gradients of their own.
- `attention.py`: attention, its blocks on feature maps, and transformer blocks with a
  context.
- `resize.py`: rescaling of maps as PyTorch does it, as products of matrices.
- `backbones.py`: the table BACKBONES of denoisers, and what one must have; `unet.py` is
  the paper's.
- `first_stages.py`: the table FIRST_STAGES, and what one must have; `autoencoder.py`
  holds encoder and decoder, `quantizer.py` the codebook.
- `discriminator.py`, `lpips.py`: the networks in the loss of a first stage.
- `classifier.py`: the classifier of noisy latents, for classifier guidance.
- `text_encoder.py`, `image_encoder.py`: transformers for conditioners, of token ids and
  of images.
"""
