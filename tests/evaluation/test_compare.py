"""Sets against references: cut runs, devices, references of all kinds, bad input."""

import contextlib
import itertools
import json
import os
import pathlib
import shutil
import zipfile

import jax
import numpy as np
import pytest

from ldm_jax import peers, sharding
from ldm_jax.data.open_source import open_source
from ldm_jax.data.tokenizers import load_tokenizer
from ldm_jax.errors import CheckpointError, ConfigError, DataError
from ldm_jax.evaluation.captions import OneCaption, read_captions
from ldm_jax.evaluation.compare import Comparison, compare
from ldm_jax.evaluation.drawn import Drawing, Plan, draw_set
from ldm_jax.evaluation.image_sets import open_images
from ldm_jax.evaluation.resuming import Saved
from ldm_jax.metrics.adm_npz import write_arrays
from ldm_jax.metrics.features import FEATURES, FeatureNetwork, Loaded
from ldm_jax.metrics.measurement import Measurement
from ldm_jax.metrics.protocols import PROTOCOLS
from ldm_jax.metrics.reference import ReferenceStatistics
from ldm_jax.metrics.set_metrics import SET_METRICS
from ldm_jax.sampling import complete
from tests.data.tar_shards import write_shard
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
    options = {"metrics": ["frechet"], "weights": {}, "batch_size": 4} | options
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


def test_a_cut_run_ends_in_the_same_digits(folders, tmp_path, capsys):
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
    said = "metrics.json is of other settings (protocol: None there, paper here): it is"
    told = capsys.readouterr().out
    assert said in told and "not written again is not of these settings" in told
    state.write_bytes(b"damaged")
    with pytest.raises(DataError, match="cannot be read .* remove it"):
        measure(one, tmp_path / "cut", **options)


def test_images_are_kept_whole_however_a_run_was_cut(folders, tmp_path):
    one, other = folders
    options, outdir = {"reference": str(other), "save_every": 8}, tmp_path / "out"
    expected = np.stack([picture(k) for k in range(22)])

    def run(npz, cut_after=None, break_with=KeyboardInterrupt):
        asked = []
        with contextlib.suppress(break_with):
            asked = measure(one, outdir, 1, cut_after, npz=npz, **options)[1]
        return asked

    def finished(asked, start):
        assert asked == [start]
        with np.load(outdir / "samples.npz") as kept:
            np.testing.assert_array_equal(kept["arr_0"], expected)
        assert not list(outdir.glob("*.partial.*"))
        for path in outdir.glob("[!r]*"):
            path.unlink()

    # Begun without: what was not kept is taken again; begun with: it continues.
    run(False, 3)
    finished(run(True), 0)
    run(True, 3)
    finished(run(True), 8)
    # Kept, then not kept, then kept.
    run(True, 3)
    run(False, 2)
    finished(run(True), 0)
    # Its images are gone, or those of another set are there.
    run(True, 3)
    np.save(outdir / "samples.partial.npy", expected[:5])
    finished(run(True), 0)
    # A run of other settings leaves them alone.
    run(True, 3)
    with pytest.raises(ConfigError, match="other settings"):
        few = open_images(one, mesh_of(1), 4, count=20)
        compare(few, how(outdir, npz=True, **options), mesh_of(1))
    finished(run(True), 8)


def test_a_run_that_is_killed_once_its_samples_are_written(
    folders, tmp_path, monkeypatch
):
    one, other = folders
    options = {"reference": str(other), "save_every": 8, "npz": True}
    with pytest.raises(KeyboardInterrupt):
        measure(one, tmp_path, cut_after=0, **options)
    with monkeypatch.context() as patch:
        patch.setattr(Saved, "remove", _kill)
        with pytest.raises(KeyboardInterrupt):
            measure(one, tmp_path, **options)
    _, asked = measure(one, tmp_path, **options)
    assert not asked
    (tmp_path / "metrics.json").unlink()
    _, asked = measure(one, tmp_path, **options)
    assert asked == [16]
    expected = np.stack([picture(k) for k in range(22)])
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npz")["arr_0"], expected)
    # The samples of another run are not those of this one.
    np.savez(tmp_path / "samples.npz", arr_0=expected[::-1])
    _, asked = measure(one, tmp_path, **options)
    assert asked == [0]
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npz")["arr_0"], expected)


def _kill(*_):
    raise KeyboardInterrupt


def test_what_could_not_be_read_is_listed_also_after_a_cut(folders, tmp_path):
    one, other = folders
    shutil.copytree(one, tmp_path / "bad")
    for name in ("02", "05", "21"):
        (tmp_path / "bad" / f"{name}.png").write_bytes(b"no image")
    for side, outdir in ((None, tmp_path / "as_they_are"), (16, tmp_path / "cut")):
        settings = how(
            outdir, reference=str(other), image_size=side, save_every=8, batch_size=4
        )
        images = open_images(
            tmp_path / "bad", mesh_of(2), 4, image_size=side, skip_unreadable=True
        )
        whole = images.batches
        images.batches = lambda start, whole=whole: itertools.islice(whole(start), 3)
        with pytest.MonkeyPatch.context() as patch:
            # Broken off once the state is saved.
            patch.setattr(Measurement, "results", _kill)
            with pytest.raises(KeyboardInterrupt):
                compare(images, settings, mesh_of(2))
        images.batches = whole
        found = compare(images, settings, mesh_of(2))
        assert found[NAME].count == 19
        record = json.loads((outdir / "metrics.json").read_text())
        names = [path.rpartition("/")[2] for path in record["unreadable"]]
        assert names == ["02.png", "05.png", "21.png"]


def test_damaged_shards_are_listed_and_counted(tmp_path):
    (tmp_path / "tars").mkdir()
    for part, numbers in enumerate((range(4), range(4, 10))):
        write_shard(str(tmp_path / "tars" / f"{part}.tar"), numbers)
    damaged = tmp_path / "tars" / "1.tar"
    os.truncate(damaged, damaged.stat().st_size // 2)
    options = {"image_size": 16, "skip_unreadable": True}
    images = open_images(tmp_path / "tars", mesh_of(1), 4, **options)
    assert 4 < images.count < 10
    reference = str(tmp_path / "tars")
    settings = how(tmp_path / "out", reference=reference, **options)
    compare(images, settings, mesh_of(1))
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record["unreadable"] == images.left_out
    for place in record["unreadable"]:
        assert place.startswith(str(damaged)) and "cut short" in place
    reference = record["reference"]
    assert reference["listed"] == reference["count"] == images.count
    assert reference["unreadable"] == len(reference["left_out"])
    assert reference["left_out"] == images.left_out


def test_where_images_lie_is_no_setting(folders, tmp_path, monkeypatch):
    one, other = folders
    found, _ = measure(one, tmp_path / "out", reference=str(other))
    monkeypatch.chdir(one.parent)
    again, asked = measure("./one", tmp_path / "out", reference="./other")
    assert again == found and not asked


def test_published_numbers_are_asked_for_later(folders, tmp_path, capsys):
    one, other = folders
    measure(one, tmp_path, reference=str(other))
    options = {"reference": str(other), "published": "imagenet_class:f4"}
    _, asked = measure(one, tmp_path, **options)
    assert not asked
    record = json.loads((tmp_path / "metrics.json").read_text())["published"]
    assert record["values"]["fid"]["verdict"] == "not comparable"
    for text in (capsys.readouterr().out, (tmp_path / "metrics.md").read_text()):
        assert "| fid | - | - | - | 10.56 | not comparable" in text
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["metrics"].keys() == {NAME} and record["unreadable"] == []


def test_processes_that_find_different_files(folders, tmp_path, monkeypatch):
    one, other = folders
    monkeypatch.setattr(peers, "gather", lambda text: [text, "not there"])
    (tmp_path / "reference.npz").write_bytes(b"")
    message = r"reference.npz is not the same for all processes \(there, not there\)"
    with pytest.raises(DataError, match=message):
        measure(one, tmp_path, reference=str(other))


def test_a_model_that_was_trained_anew_is_another_one():
    trained, mesh = make_trained("label", scale=0), mesh_of(1)
    trained = trained._replace(params={"kernel": np.zeros(3, np.float32)})
    first = Drawing(trained, mesh).checksums
    assert first == Drawing(trained, mesh).checksums
    params = jax.tree.map(lambda leaf: leaf + 1, trained.params)
    frozen = trained.frozen | {"first_stage": {"kernel": np.ones(3, np.float32)}}
    others = trained._replace(params=params), trained._replace(frozen=frozen)
    for other in others:
        assert Drawing(other, mesh).checksums != first
    images, _ = draw_set(Drawing(trained, mesh), complete(trained), Plan(4, 4))
    assert images.record["checksums"] == first


def test_features_of_the_images_in_a_file_of_statistics(folders, tmp_path, monkeypatch):
    one, other = folders
    kid = SET_METRICS["kid"]._replace(network="random", tap="pooled")
    monkeypatch.setitem(SET_METRICS, "kid", kid)
    expected, _ = measure(one, tmp_path / "a", reference=str(other), metrics=["kid"])
    # As guided-diffusion's: moments, and images whose features are computed.
    found = ReferenceStatistics.load(tmp_path / "a" / "reference.npz")
    statistics = found.taps["random/pooled"]._replace(rows=None)
    path = tmp_path / "adm.npz"
    ReferenceStatistics({"random/pooled": statistics}, found.record).save(path)
    options = {"reference": str(path), "metrics": ["kid"]}
    with pytest.raises(ConfigError, match="kid needs the features of each image"):
        measure(one, tmp_path / "b", **options)
    with zipfile.ZipFile(path, "a") as archive:
        images = np.stack([picture(100 + k) // 2 for k in range(14)])
        write_arrays(archive, {"arr_0": images})
    again, _ = measure(one, tmp_path / "c", **options)
    assert again == expected


def test_features_of_some_images_are_of_images_all_over(folders, tmp_path, monkeypatch):
    one, other = folders
    kid = SET_METRICS["kid"]._replace(network="random", tap="pooled")
    monkeypatch.setitem(SET_METRICS, "kid", kid)
    few = PROTOCOLS["paper"]._replace(reference_rows=5)
    monkeypatch.setitem(PROTOCOLS, "paper", few)
    options = {"metrics": ["kid"], "reference": str(other)}
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
    statistics.write_bytes(statistics.read_bytes()[:-100])
    with pytest.raises(
        DataError, match="^--outdir: .*reference.npz is no .*; remove it"
    ):
        measure(large, tmp_path / "a", reference=str(large))
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
        # What fills a batch up has no caption.
        assert (index[:2] >= 0).all() and (index < 22).all()
        ids = captions[index].astype(np.int32)
        return sharding.put_batch({"ids": ids}, mesh)["ids"]

    images.tokens = tokens
    # The reference has no captions.
    metrics = ["clip_score", "frechet", "cmmd"]
    options = {"metrics": metrics, "reference": str(other)}
    settings = how(tmp_path, weights={"clip": "file"}, **options)
    bare = open_images(one, mesh, 4)
    with pytest.raises(ConfigError, match="clip_score: .*have none: .*--prompts_file"):
        compare(bare, settings, mesh)
    _LOADED.clear()
    found = compare(images, settings, mesh)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(captions, axis=1)
    expected = 100 * np.mean(np.sum(first * captions, axis=1) / lengths)
    assert found["clip_score"].value == pytest.approx(expected, rel=1e-5)
    assert found[NAME].count == found["cmmd"].count == 22
    # The reference is measured by the same networks.
    assert _LOADED == ["file"]


_LOADED = []


def _load(path):
    _LOADED.append(path)
    return Loaded({}, "")


def test_captions_are_those_that_samples_are_drawn_from(shapes_dir, tmp_path):
    trained = make_trained("caption", scale=0, data_dir=shapes_dir)
    trained.config.data.image_size = 16
    plan = Plan(6, 4, tokenizer="shapes")
    images, _ = draw_set(Drawing(trained, mesh_of(2)), complete(trained), plan)
    # Negative numbers are of what fills a batch up.
    ids = np.asarray(images.tokens(np.array([0, 1, 11, -1])))
    assert ids.shape == (4, 77) and (ids[0] != ids[1]).any()
    source = open_source(trained.config.data, "validation")
    captions = [source[k]["caption"].decode() for k in (0, 1, 11)]
    expected = load_tokenizer("shapes", 77)([*captions, ""])
    np.testing.assert_array_equal(ids, expected)
    before = images.record["captions"]
    assert before["tokenizer"] == "shapes" and before["captions"]
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
    assert images.record["captions"] != before
    with pytest.raises(ConfigError, match="--num_samples=3: .*prompts.txt gives"):
        draw_set(
            Drawing(trained, mesh_of(2)), complete(trained), plan._replace(count=3)
        )
    label = make_trained("label", scale=0)
    with pytest.raises(ConfigError, match="captions are not all .* which is label"):
        draw_set(Drawing(label, mesh_of(2)), complete(label), plan)


class Examples:
    """Examples of which one cannot be read; counts how often each is."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 4

    def __getitem__(self, index):
        self.read.append(index)
        if index == 2:
            raise ValueError("damaged")
        return {"caption": [f"caption {index}", "another"]}

    def describe(self, index):
        return f"example {index}"


def test_a_caption_is_read_with_its_example():
    examples = Examples()
    source = OneCaption(examples)
    assert source[1]["caption"] == source.caption(1) == source.caption(1) == "caption 1"
    assert source.caption(3) == "caption 3" and examples.read == [1, 3]
    with pytest.raises(DataError, match="the caption of example 2: damaged; repair"):
        source.caption(2)


def test_only_samples_that_count_must_be_finite(monkeypatch):
    trained = make_trained("label", scale=0)
    drawing, options = Drawing(trained, mesh_of(4)), complete(trained)

    def program(bad):
        def draw(each):
            images = np.zeros((4, 16, 16, 3), np.uint8)
            return images, np.arange(4) != bad

        return lambda *_: draw

    for bad, is_drawn in ((3, True), (2, False)):
        monkeypatch.setattr(drawing, "program", program(bad))
        images, _ = draw_set(drawing, options, Plan(3, 4))
        refused = pytest.raises(CheckpointError, match="are not finite")
        with contextlib.nullcontext() if is_drawn else refused:
            assert [position for position, _ in images.batches(0)] == [3]


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
