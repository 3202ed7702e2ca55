"""Sets against references: cut runs, devices, references of all kinds, bad input."""

import json
import pathlib
import zipfile

import jax
import numpy as np
import pytest

from ldm_jax import sharding
from ldm_jax.data.loader import open_source
from ldm_jax.data.tokenizers import load_tokenizer
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.evaluation.captions import first_of, read_captions
from ldm_jax.evaluation.compare import Comparison, compare
from ldm_jax.evaluation.drawn import Drawing, Plan, draw_set
from ldm_jax.evaluation.image_sets import open_images
from ldm_jax.metrics.adm_npz import write_arrays
from ldm_jax.metrics.distances import DISTANCES
from ldm_jax.metrics.features import FEATURES, FeatureNetwork, Loaded
from ldm_jax.metrics.protocols import PROTOCOLS
from ldm_jax.metrics.reference import ReferenceStatistics
from ldm_jax.sampling import complete
from tests.sampling.common import make_trained, picture, write_image

NAME = "random-features distance (frechet)"


def mesh_of(devices):
    return sharding.make_mesh(devices=jax.devices()[:devices])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of images, 22 and 14."""
    root = tmp_path_factory.mktemp("folders")
    for k in range(22):
        write_image(root / "one" / f"{k:02}.png", picture(k))
    for k in range(14):
        write_image(root / "other" / f"{k:02}.png", picture(100 + k) // 2)
    return root / "one", root / "other"


def how(outdir, **options):
    options = {"distances": ["frechet"], "weights": {}, "batch_size": 4} | options
    return Comparison(outdir=pathlib.Path(outdir), **options)


def measure(place, outdir, devices=1, cut_after=None, **options):
    """Compares images; a cut run breaks off before so many batches are through."""
    mesh, settings = mesh_of(devices), how(outdir, **options)
    images = open_images(place, mesh, settings.batch_size)
    whole, asked = images.batches, []

    def batches(start):
        asked.append(start)
        for k, batch in enumerate(whole(start)):
            if k == cut_after:
                raise KeyboardInterrupt
            yield batch

    images.batches = batches
    return compare(images, settings, mesh), asked


def test_a_reference_is_a_folder_an_npz_or_a_file_of_statistics(folders, tmp_path):
    one, other = folders
    found, _ = measure(one, tmp_path / "a", reference=str(other))
    value = found[NAME].value
    assert value > 0 and found[NAME].count == 22
    images = np.stack([picture(100 + k) // 2 for k in range(14)])
    np.savez(tmp_path / "other.npz", arr_0=images)
    for name, place in {
        "b": tmp_path / "other.npz",
        "c": tmp_path / "a" / "reference.npz",
    }.items():
        again, _ = measure(one, tmp_path / name, reference=str(place))
        assert again[NAME].value == value
    # On any devices and in any batches.
    again, _ = measure(one, tmp_path / "d", 4, reference=str(other), batch_size=16)
    assert again[NAME].value == pytest.approx(value, rel=1e-5)
    same, _ = measure(one, tmp_path / "e", reference=str(one))
    assert same[NAME].value == pytest.approx(0, abs=1e-6)
    record = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert record["metrics"] == {NAME: value}
    assert record["reference"]["count"] == 14
    assert record["networks"]["random"]["checksum"]
    assert f"| {NAME} | " in (tmp_path / "a" / "metrics.md").read_text()


def test_a_cut_run_ends_in_the_same_digits(folders, tmp_path):
    one, other = folders
    whole, _ = measure(one, tmp_path / "whole", reference=str(other))
    options = {"reference": str(other), "save_every": 8}
    for cut_after in (0, 3):
        with pytest.raises(KeyboardInterrupt):
            measure(one, tmp_path / "cut", cut_after=cut_after, **options)
    state = tmp_path / "cut" / "evaluation.partial.npz"
    assert state.exists()
    with pytest.raises(ConfigError, match=r"other settings \(images.count: 22 there"):
        images = open_images(one, mesh_of(1), 4, count=20)
        compare(images, how(tmp_path / "cut", **options), mesh_of(1))
    found, asked = measure(one, tmp_path / "cut", **options)
    # The last state was saved after eight images.
    assert asked == [8]
    assert found[NAME].value == whole[NAME].value
    assert not state.exists()
    # What is measured is not measured again, unless something is another.
    again, asked = measure(one, tmp_path / "cut", **options)
    assert again == found and not asked
    again, asked = measure(one, tmp_path / "cut", protocol="paper", **options)
    assert asked == [0] and again[NAME].value == found[NAME].value
    state.write_bytes(b"damaged")
    with pytest.raises(DataError, match="cannot be read .* take it away"):
        measure(one, tmp_path / "cut", **options)


def test_features_of_the_images_in_a_file_of_statistics(folders, tmp_path, monkeypatch):
    one, other = folders
    kid = DISTANCES["kid"]._replace(network="random", tap="pooled")
    monkeypatch.setitem(DISTANCES, "kid", kid)
    expected, _ = measure(one, tmp_path / "a", reference=str(other), distances=["kid"])
    # As guided-diffusion's: moments, and images whose features are computed.
    found = ReferenceStatistics.load(tmp_path / "a" / "reference.npz")
    statistics = found.taps["random/pooled"]._replace(rows=None)
    path = tmp_path / "adm.npz"
    ReferenceStatistics({"random/pooled": statistics}, found.record).save(path)
    options = {"reference": str(path), "distances": ["kid"]}
    with pytest.raises(ConfigError, match="kid needs the features of each image"):
        measure(one, tmp_path / "b", **options)
    with zipfile.ZipFile(path, "a") as archive:
        images = np.stack([picture(100 + k) // 2 for k in range(14)])
        write_arrays(archive, {"arr_0": images})
    again, _ = measure(one, tmp_path / "c", **options)
    assert again == expected


def test_features_of_some_images_are_of_images_all_over(folders, tmp_path, monkeypatch):
    one, other = folders
    kid = DISTANCES["kid"]._replace(network="random", tap="pooled")
    monkeypatch.setitem(DISTANCES, "kid", kid)
    few = PROTOCOLS["paper"]._replace(reference_rows=5)
    monkeypatch.setitem(PROTOCOLS, "paper", few)
    options = {"distances": ["kid"], "reference": str(other)}
    measure(one, tmp_path / "all", **options)
    few, _ = measure(one, tmp_path / "few", protocol="paper", **options)
    everything, found = (
        ReferenceStatistics.load(tmp_path / name / "reference.npz").taps
        for name in ("all", "few")
    )
    rows = everything["random/pooled"].rows[[0, 2, 5, 8, 11]]
    np.testing.assert_array_equal(found["random/pooled"].rows, rows)
    # Of a file that has more of them, too, and none where the file is another one.
    with pytest.raises(ConfigError, match=r"features of random/pooled: 14 .* 5 here"):
        measure(one, tmp_path / "all", protocol="paper", **options)
    options["reference"] = str(tmp_path / "all" / "reference.npz")
    again, _ = measure(one, tmp_path / "file", protocol="paper", **options)
    assert again == few
    for name in ("few", "file"):
        record = json.loads((tmp_path / name / "metrics.json").read_text())
        counts = {"chosen": "evenly spaced", "count": {"random/pooled": 5}}
        assert record["reference"]["rows"] == counts


def test_what_does_not_go_together_is_refused_before_it_is_measured(folders, tmp_path):
    one, other = folders
    with pytest.raises(ConfigError, match="frechet: a reference is needed"):
        measure(one, tmp_path / "a")
    with pytest.raises(ConfigError, match="--protocol=coco30k .* --image_size=256"):
        measure(one, tmp_path / "a", protocol="coco30k", reference=str(other))
    large = tmp_path / "large"
    for k in range(3):
        write_image(large / f"{k}.png", picture(k, 24, 24))
    with pytest.raises(ConfigError, match="24 x 24 pixels and these have 16 x 16"):
        measure(one, tmp_path / "a", reference=str(large))
    measure(large, tmp_path / "a", reference=str(large))
    statistics = tmp_path / "a" / "reference.npz"
    with pytest.raises(ConfigError, match="24 x 24 pixels and these have 16 x 16"):
        measure(one, tmp_path / "b", reference=str(statistics))
    with pytest.raises(ConfigError, match="has statistics of another reference"):
        measure(one, tmp_path / "a", reference=str(other))
    (tmp_path / "few").mkdir()
    write_image(tmp_path / "few" / "0.png", picture())
    (tmp_path / "few" / "1.png").write_bytes(b"no image")
    images = open_images(tmp_path / "few", mesh_of(1), 4, skip_unreadable=True)
    with pytest.raises(DataError, match="1 of the 2 images .* can be read"):
        compare(images, how(tmp_path / "c", reference=str(one)), mesh_of(1))


def test_samples_are_drawn_while_they_are_measured(folders, tmp_path):
    trained = make_trained("label")
    options = complete(trained)
    mesh, outdir = mesh_of(4), tmp_path / "drawn"
    images, labels = draw_set(Drawing(trained, mesh), options, Plan(10, 8, seed=1))
    settings = how(outdir, reference=str(folders[0]), npz=True, batch_size=8)
    value = compare(images, settings, mesh, labels)[NAME].value
    record = json.loads((outdir / "metrics.json").read_text())
    assert record["images"]["conditions"] == {"label_mode": "random"}
    assert record["images"]["sample"]["num_steps"] == 2
    kept = np.load(outdir / "samples.npz")
    assert kept["arr_0"].shape == (10, 16, 16, 3) and kept["arr_0"].std() > 10
    np.testing.assert_array_equal(kept["arr_1"], labels)
    # The samples that were kept are those that were measured.
    again, _ = measure(
        outdir / "samples.npz", tmp_path / "kept", reference=str(folders[0])
    )
    assert again[NAME].value == pytest.approx(value, rel=1e-5)


def test_each_image_is_measured_by_its_own_caption(folders, tmp_path, monkeypatch):
    one, other = folders
    first = np.stack([picture(k)[0, 0] for k in range(22)]).astype(np.float32)
    captions = np.random.default_rng(0).integers(0, 9, (22, 3))

    def apply(params, images, taps):
        return {tap: images[:, 0, 0].astype("float32") for tap in taps}

    def embed_text(params, captions):
        return captions.astype("float32")

    network = FeatureNetwork("", "", {"embedding": 3}, _load, apply, embed_text)
    monkeypatch.setitem(FEATURES, "clip", network)
    mesh = mesh_of(2)
    images = open_images(one, mesh, 4)

    def tokens(index):
        # What fills a batch up has any caption.
        ids = captions[np.minimum(index, 21)].astype(np.int32)
        return sharding.put_batch({"ids": ids}, mesh)["ids"]

    images.tokens = tokens
    # The reference has no captions.
    options = {"distances": ["clip_score", "frechet"], "reference": str(other)}
    settings = how(tmp_path, weights={"clip": "file"}, **options)
    found = compare(images, settings, mesh)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(captions, axis=1)
    expected = 100 * np.mean(np.sum(first * captions, axis=1) / lengths)
    assert found["clip_score"].value == pytest.approx(expected, rel=1e-5)
    assert found[NAME].count == 22


def _load(path, dtype):
    return Loaded({}, "")


def test_captions_are_those_that_samples_are_drawn_from(shapes_dir, tmp_path):
    trained = make_trained("caption", scale=0, data_dir=shapes_dir)
    trained.config.data.image_size = 16
    plan = Plan(6, 4, tokenizer="shapes")
    images, _ = draw_set(Drawing(trained, mesh_of(2)), complete(trained), plan)
    # Numbers beyond the examples fill a batch up.
    ids = np.asarray(images.tokens(np.array([0, 1, 11, 12])))
    assert ids.shape == (4, 77) and (ids[0] != ids[1]).any()
    source = open_source(trained.config.data, "validation")
    captions = [source[k]["caption"] for k in (0, 1, 11)]
    expected = load_tokenizer("shapes", 77)([first_of(c) for c in captions] + [""])
    np.testing.assert_array_equal(ids, expected)
    path = tmp_path / "prompts.txt"
    path.write_text("a star\na heart\n")
    assert read_captions(path) == ["a star", "a heart"]
    with pytest.raises(ConfigError, match="--prompts_file: cannot read .*none.txt"):
        read_captions(tmp_path / "none.txt")
    # What is drawn from a file has its captions.
    plan = plan._replace(count=None, prompts_file=str(path))
    images, _ = draw_set(Drawing(trained, mesh_of(2)), complete(trained), plan)
    assert images.count == 2
    expected = load_tokenizer("shapes", 77)(["a star", "a heart"])
    np.testing.assert_array_equal(images.tokens(np.arange(2)), expected)
    with pytest.raises(ConfigError, match="--num_samples=3: .*prompts.txt gives"):
        draw_set(
            Drawing(trained, mesh_of(2)), complete(trained), plan._replace(count=3)
        )
    label = make_trained("label", scale=0)
    with pytest.raises(ConfigError, match="captions are not all .* which is label"):
        draw_set(Drawing(label, mesh_of(2)), complete(label), plan)


def test_conditions_that_do_not_suffice(shapes_dir):
    trained = make_trained("depth", scale=0, data_dir=shapes_dir)
    trained.config.data.image_size = 16
    options, mesh = complete(trained), mesh_of(1)
    images, labels = draw_set(Drawing(trained, mesh), options, Plan(None, 4))
    assert images.count == 12 and labels is None
    assert images.record["conditions"]["split"] == "validation"
    with pytest.raises(ConfigError, match="--num_samples=13: .* for 12 samples"):
        draw_set(Drawing(trained, mesh), options, Plan(13, 4))
    with pytest.raises(ConfigError, match="label_mode"):
        draw_set(Drawing(trained, mesh), options, Plan(2, label_mode="equal"))
    label = make_trained("label", scale=0)
    with pytest.raises(ConfigError, match="--num_samples is not given"):
        draw_set(Drawing(label, mesh), complete(label), Plan(None))
