"""Published numbers of the models of `configs/`, to compare one's own with.

Second stages: Tables 1, 2, 3, 9 and 10 of the paper and the pages of the released
models, 50,000 samples against the training set unless the protocol says otherwise.
First stages: Table 8, trained on OpenImages, on the validation images of ImageNet.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ldm_jax.config import choose

# Relative tolerance of a published number. Another seed changes the FID of 50,000
# samples by about 1 %; ports of Inception and of a resize filter, which the published
# numbers do not fix, by more.
TOLERANCE = 0.05


class Published(NamedTuple):
    """A published result of a model of `configs/`.

    Attributes:
      values: Name of a result, as in `Measurement.results` -> published value.
      sampling: Options of the config section `sample` with which samples were drawn;
        for a first stage the size and number of the images it was measured on.
      protocol: Row of PROTOCOLS; "" for a first stage.
      source: Where it was published.
    """

    values: Mapping[str, float]
    sampling: Mapping[str, Any]
    protocol: str
    source: str


def find_published(config: str, sampling: Mapping[str, Any]) -> Published:
    """Finds the numbers published for a config, by the guidance scale that was used.

    Args:
      config: Row of PUBLISHED.
      sampling: Options with which samples were drawn.

    Returns:
      The result at that guidance scale, or else the first one of the config.

    Raises:
      ConfigError: If there is no such row.
    """
    rows = choose(PUBLISHED, config, "--published")
    scale = sampling.get("guidance_scale", 1.0)
    same = [row for row in rows if row.sampling.get("guidance_scale", 1.0) == scale]
    return (same or rows)[0]


def _second(quality, steps, eta, source, protocol="paper", scale=1.0):
    """Result of a second stage: FID, inception score, precision and recall."""
    names = ("fid", "inception_score", "precision", "recall")
    pairs = zip(names, quality, strict=False)
    values = {name: value for name, value in pairs if value is not None}
    sampling = {"sampler": "ddim", "num_steps": steps, "eta": eta}
    return Published(values, sampling | {"guidance_scale": scale}, protocol, source)


def _first(*numbers):
    """Result of a first stage: R-FID, PSNR in dB, SSIM."""
    values = dict(zip(("rfid", "psnr", "ssim"), numbers, strict=True))
    images = {"image_size": 256, "num_images": 50_000}
    return (Published(values, images, "", "Table 8 (ImageNet's validation images)"),)


_T1, _T2, _T3, _T9 = "Table 1", "Table 2", "Tables 3 and 10", "Table 9"
_PAGE = "page of the released model"

# Config and variant -> its published results.
PUBLISHED = {
    "unconditional:celebahq": (_second((5.11, None, 0.72, 0.49), 500, 0.0, _T1),),
    "unconditional:ffhq": (_second((4.98, None, 0.73, 0.50), 200, 1.0, _T1),),
    # With the steps of the released model's page; Table 1 has 200.
    "unconditional:churches": (_second((4.02, None, 0.64, 0.52), 400, 0.0, _T1),),
    "unconditional:bedrooms": (_second((2.95, None, 0.66, 0.48), 200, 1.0, _T1),),
    "imagenet_class:f4": (
        _second((10.56, 103.49, 0.71, 0.62), 250, 0.0, _T3),
        _second((3.60, 247.67, 0.87, 0.48), 250, 0.0, _T3, scale=1.5),
        _second((3.95, 178.22, 0.81, 0.55), 250, 0.0, _T3, scale=1.25),
    ),
    "imagenet_class:f8": (_second((15.51, 79.03, 0.65, 0.63), 200, 1.0, _T3),),
    "text_to_image:laion": (
        _second((23.31, 20.03), 250, 0.0, _T2, "coco30k"),
        _second((12.63, 30.29), 250, 0.0, _T2, "coco30k", scale=1.5),
    ),
    "layout_to_image:openimages": (
        _second((32.02, 15.92), 200, 0.0, f"{_T9}, {_PAGE}", "layout2048"),
    ),
    "layout_to_image:coco": (_second((42.06,), 100, 0.0, _T9, "layout2048"),),
    "autoencoder_kl:f2": _first(0.086, 32.47, 0.93),
    "autoencoder_kl:f4": _first(0.27, 27.53, 0.82),
    "autoencoder_kl:f8": _first(0.90, 24.19, 0.69),
    "autoencoder_kl:f16": _first(0.87, 24.08, 0.68),
    "autoencoder_kl:f16_c8": _first(2.63, 21.94, 0.59),
    "autoencoder_kl:f32": _first(2.04, 22.27, 0.61),
    "autoencoder_kl:f32_c16": _first(7.3, 20.38, 0.53),
    "autoencoder_vq:f2": _first(0.16, 30.85, 0.91),
    "autoencoder_vq:f2_n64": _first(0.40, 29.13, 0.90),
    "autoencoder_vq:f4": _first(0.58, 27.43, 0.82),
    "autoencoder_vq:f4_noattn": _first(1.06, 25.21, 0.76),
    "autoencoder_vq:f4_n256": _first(0.47, 26.43, 0.80),
    "autoencoder_vq:f8": _first(1.14, 23.07, 0.65),
    "autoencoder_vq:f8_n256": _first(1.49, 22.35, 0.62),
    "autoencoder_vq:f16": _first(5.15, 20.83, 0.54),
    "autoencoder_vq:f32": _first(31.83, 17.45, 0.41),
}
