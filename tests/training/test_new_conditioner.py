"""Another conditioner is a module and one row: it trains, and it samples by flags."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from ldm_jax import sampling
from ldm_jax.conditioners import CONDITIONERS
from ldm_jax.conditioners.checks import check_images
from ldm_jax.images import read_image
from ldm_jax.models.layers import dense
from tests.runs import train
from tests.sampling.common import run


class Palette(nn.Module):
    """The mean colour of an image."""

    features: int
    slot: str = "vector"
    dtype: Any = jnp.float32

    slots = ("vector",)
    from_backbone = ("features",)

    @nn.compact
    def __call__(self, images):
        colours = jnp.mean(images.astype(jnp.float32), axis=(1, 2)) / 127.5 - 1
        return dense(self.features, dtype=self.dtype, name="embed")(colours)

    @nn.nowrap
    def null(self, images):
        return jnp.full_like(images, 128)

    @nn.nowrap
    def check(self, images):
        check_images(images)


def test_a_module_and_a_row_are_enough(monkeypatch, shapes_dir, tmp_path):
    monkeypatch.setitem(CONDITIONERS, "palette", Palette)
    metrics = train(
        "shapes_class",
        shapes_dir,
        tmp_path / "run",
        first_stage__workdir="identity",
        data__inputs=ConfigDict({"palette": {"kind": "image"}}),
        conditions=ConfigDict({"palette": {"kind": "palette", "dropout": 0.1}}),
        train__num_steps=2,
    )
    assert np.isfinite(metrics["loss"])
    trained = sampling.load_model(tmp_path / "run")
    # Its width follows from the backbone, its weights are among those that train.
    assert trained.model.conditioner.entries["palette"]["features"] == 128
    kernel = trained.params["conditioner"]["palette"]["embed"]["kernel"]
    assert kernel.shape == (3, 128)

    red = np.full((32, 32, 3), (255, 0, 0), np.uint8)
    Image.fromarray(red).save(tmp_path / "red.png")
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    options = dict(num_samples=2, num_steps=2, guidance_scale=2.0)
    given = {"style": [str(tmp_path / "red.png")]}
    run(trained, tmp_path / "samples", given, **options)
    image = read_image(tmp_path / "samples" / "samples" / "000001.png")
    assert image.shape == (32, 32, 3)
