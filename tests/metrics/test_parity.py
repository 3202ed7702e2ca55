"""Features and FID beside torch-fidelity and pytorch-fid, with one file of weights.

Skipped where they are not installed; takes minutes:

    pip install torch torch-fidelity pytorch-fid
    pytest -m slow tests/metrics/test_parity.py -s
"""

import importlib.util

import jax
import numpy as np
import pytest
from PIL import Image

from ldm_jax import sharding
from ldm_jax.metrics.features import load_network
from ldm_jax.metrics.features.inception_weights import draw_inception
from ldm_jax.metrics.measurement import Measurement
from tests.common import assert_close

MISSING = [
    name
    for name in ("torch", "torch_fidelity", "pytorch_fid")
    if importlib.util.find_spec(name) is None
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]
COUNT, SIDE = 40, 72


def draw_images(seed, mean):
    """Smooth pictures, uint8 [COUNT, SIDE, SIDE, 3]."""
    rng = np.random.default_rng(seed)
    rough = rng.normal(mean, 50, (COUNT, 9, 9, 3)).clip(0, 255).astype(np.uint8)
    pictures = (Image.fromarray(r).resize((SIDE, SIDE), Image.BICUBIC) for r in rough)
    return np.stack([np.asarray(picture) for picture in pictures])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two folders of images and a file of weights in the published layout."""
    import torch

    folder = tmp_path_factory.mktemp("parity")
    for name, seed, mean in (("a", 0, 110), ("b", 1, 140)):
        (folder / name).mkdir()
        for i, image in enumerate(draw_images(seed, mean)):
            Image.fromarray(image).save(folder / name / f"{i:03}.png")
    weights = {k: torch.from_numpy(v) for k, v in draw_inception().items()}
    torch.save(weights, folder / "inception.pth")
    return folder


def measure(folder, names):
    """Results of metrics of the one folder to the other, by their names."""
    mesh = sharding.make_mesh()
    weights = {"inception": str(folder / "inception.pth")}
    measurement = Measurement(names, mesh, weights)
    reference = measurement.twin()
    for each, (seed, mean) in ((measurement, (0, 110)), (reference, (1, 140))):
        for images in np.split(draw_images(seed, mean), 5):
            mask = np.ones(len(images), bool)
            batch = sharding.put_batch({"images": images, "mask": mask}, mesh)
            each.add(**batch)
    measurement.compare_with(reference.as_reference())
    return {name: result.value for name, result in measurement.results().items()}


def test_torch_fidelity_measures_the_same(folder, capsys):
    import torch_fidelity

    theirs = torch_fidelity.calculate_metrics(
        input1=str(folder / "a"),
        input2=str(folder / "b"),
        **dict.fromkeys(("fid", "kid", "isc", "prc"), True),
        **dict.fromkeys(("cuda", "verbose", "cache", "save_cpu_ram"), False),
        # All images are one subset: which are drawn does not matter.
        kid_subset_size=COUNT,
        # For precision and recall it would take VGG16.
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(folder / "inception.pth"),
    )
    names = ("fid", "kid", "inception_score", "precision_recall")
    ours = measure(folder, names)
    with capsys.disabled():
        print(f"\ntorch-fidelity {theirs}\nldm_jax {ours}")
    for name, key in (
        ("fid", "frechet_inception_distance"),
        ("kid", "kernel_inception_distance_mean"),
        ("inception_score", "inception_score_mean"),
        ("precision", "precision"),
        ("recall", "recall"),
    ):
        assert ours[name] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6), name


@pytest.fixture
def their_inception(folder, monkeypatch):
    """pytorch-fid's network, which otherwise downloads its weights."""
    import torch
    from pytorch_fid import inception

    weights = torch.load(folder / "inception.pth")
    load = "load_state_dict_from_url"
    monkeypatch.setattr(inception, load, lambda *_, **__: dict(weights))
    return inception.InceptionV3


def test_pytorch_fid_measures_the_same(folder, their_inception, capsys):
    from pytorch_fid.fid_score import calculate_fid_given_paths

    paths = [str(folder / name) for name in ("a", "b")]
    theirs = calculate_fid_given_paths(paths, 20, "cpu", 2048, num_workers=0)
    ours = measure(folder, ("pytorch_fid", "fid"))
    with capsys.disabled():
        print(f"\npytorch-fid {theirs}\nldm_jax {ours}")
    assert ours["pytorch_fid"] == pytest.approx(theirs, rel=1e-4)


def test_pytorch_fid_has_the_same_features(folder, their_inception):
    import torch

    theirs = their_inception([0, 1, 2, 3]).eval()
    images = draw_images(0, 110)[:4]
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    network = load_network("inception_pytorch_fid", str(folder / "inception.pth"))
    taps = ("64", "192", "768", "2048")
    features = jax.jit(network.row.apply, static_argnums=2)(
        network.params, images, taps
    )
    for tap, maps in zip(taps, expected, strict=True):
        assert_close(features[tap], maps.mean(dim=(2, 3)).numpy(), 1e-5)
