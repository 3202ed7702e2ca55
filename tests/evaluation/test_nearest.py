"""The nearest training images of samples: exact, streamed, in a file and a picture."""

import json
import tarfile
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ldm_jax import sharding
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.evaluation.image_sets import open_images
from ldm_jax.evaluation.nearest import findings, streams
from ldm_jax.evaluation.nearest.search import Nearest
from ldm_jax.images import read_image
from ldm_jax.metrics.features import FEATURES
from ldm_jax.metrics.programs import FeatureProgram
from tests.cli.commands import COMMANDS, command
from tests.sampling.common import picture, write_image


def test_every_network_has_the_tap():
    for name, tap in streams.TAPS.items():
        assert tap in FEATURES[name].widths


@pytest.mark.parametrize("size", [1, 7, 40])
def test_the_nearest_of_a_stream_are_those_of_the_whole(size):
    rng = np.random.default_rng(0)
    queries, rows = rng.normal(size=(5, 6)), rng.normal(size=(40, 6))
    # Two that are equal: the first comes first.
    rows[31] = rows[12] = queries[0]
    found = Nearest(queries, 3)
    own = Nearest(rows[:4], 1, np.arange(4))
    for start in range(0, 40, size):
        numbers = np.arange(start, min(start + size, 40))
        found.add(rows[numbers], numbers)
        own.add(rows[numbers], numbers)
    found.add(rows[:0], np.arange(0))
    found.add(queries[:1] + 100, np.array([99]))
    distances = np.linalg.norm(queries[:, None] - rows[None], axis=2)
    order = np.argsort(distances, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(found.numbers, order)
    assert found.numbers[0, 0] == 12 and found.numbers[0, 1] == 31
    expected = np.take_along_axis(distances, order, axis=1)
    np.testing.assert_allclose(found.distances, expected, atol=1e-6)
    distances = np.linalg.norm(rows[:4, None] - rows[None], axis=2)
    distances[np.arange(4), np.arange(4)] = np.inf
    np.testing.assert_allclose(own.distances[:, 0], distances.min(axis=1), atol=1e-6)
    few = Nearest(queries, 3)
    few.add(rows[:2], np.arange(2))
    assert (few.numbers[:, 2] == -1).all() and np.isinf(few.distances[:, 2]).all()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Training images, and samples: copies of images 5 and 17, and one of its own."""
    root = tmp_path_factory.mktemp("folders")
    for k in range(21):
        write_image(root / "training" / f"{k:02}.png", picture(k))
    (root / "training" / "03.png").write_bytes(b"no image")
    for name, image in {
        "0": picture(17),
        "1": np.zeros_like(picture()),
        "2": picture(5) // 16 * 16,
    }.items():
        write_image(root / "samples" / f"{name}.png", image)
    return root


def test_copies_are_found_and_shown(folders):
    found = {}
    for devices, size in ((1, 4), (4, 8)):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        sets = (
            open_images(folders / name, mesh, size, skip_unreadable=True)
            for name in ("samples", "training")
        )
        program = FeatureProgram("random", None, ("pooled",), mesh)
        found[devices] = streams.find_nearest(*sets, program, 4)
    one, four = found.values()
    np.testing.assert_array_equal(one.nearest.numbers, four.nearest.numbers)
    np.testing.assert_allclose(one.nearest.distances, four.nearest.distances, atol=1e-5)
    assert one.nearest.numbers[[0, 2], 0].tolist() == [17, 5]
    assert one.nearest.distances[0, 0] == pytest.approx(0, abs=1e-5)
    assert 3 not in one.nearest.numbers
    for places in (one.training, four.training):
        read = places.read(np.array([[17, 0], [20, 17]]))
        assert read.keys() == {0, 17, 20}
        for number, image in read.items():
            np.testing.assert_array_equal(image, picture(number))
    # All training images are controls here, but the one that cannot be read.
    assert len(one.controls) == len(four.controls) == 20
    assert one.controls.min() > 0
    counted = findings.near(one)
    assert counted.fraction == pytest.approx(2 / 3) and counted.controls == 20
    assert findings.order_of(one).tolist() == [0, 2, 1]
    shown = findings.grid_of(four, 2)
    # Two rows: a sample, a gap, four neighbours.
    assert shown.shape == (2 * 18 - 2, 16 + 8 + 4 * 18 - 2, 3)
    np.testing.assert_array_equal(shown[:16, :16], picture(17))
    np.testing.assert_array_equal(shown[:16, 24:40], picture(17))
    np.testing.assert_array_equal(shown[18:, 24:40], picture(5))
    few = open_images(folders / "training", mesh, 4, count=2)
    nothing = open_images(folders / "training", mesh, 4, count=2)
    nothing.batches = lambda start: (
        (end, batch | {"mask": np.zeros(4, bool)}) for end, batch in few.batches(start)
    )
    for sets in ((few, nothing), (nothing, few)):
        with pytest.raises(DataError, match=r"(none|fewer than two) of the .* be read"):
            streams.find_nearest(*sets, program, 4)


def test_features_that_are_no_numbers_are_refused(folders):
    class Program(FeatureProgram):
        network = SimpleNamespace(name="random")

        def __init__(self):
            pass

        def __call__(self, batch, mask, captions):
            # From the second batch on.
            value = np.nan if np.asarray(batch).max() < 1 else 0.0
            return {"pooled": np.full((len(batch), 2), value)}, mask

    images = open_images(
        folders / "samples", sharding.make_mesh(devices=jax.devices()[:1]), 1
    )
    with pytest.raises(DataError, match="1 of 1 images are not finite"):
        list(streams.rows_of(images, Program()))


def test_the_command(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(COMMANDS, "nearest", (COMMANDS["nearest"][0], ()))
    words = [f"--images={folders}/samples", f"--reference={folders}/training"]
    words += ["--network=random", f"--outdir={tmp_path}", "--skip_unreadable"]
    with command("nearest") as run:
        run(*words, "--num_neighbours=2", "--batch_size=8")
    output = capsys.readouterr().out
    assert f"nearest: {folders}/samples/0.png to {folders}/training/17.png" in output
    assert (
        "66.7% of the samples are nearer to a training image than 95% of 20" in output
    )
    assert "by distances of random-features (random)" in output
    record = json.loads((tmp_path / "neighbours.json").read_text())
    assert record["network"]["weights"] == "random"
    assert [len(each["neighbours"]) for each in record["samples"]] == [2, 2, 2]
    assert read_image(tmp_path / "neighbours.png").shape == (52, 58, 3)


def test_shards_of_samples_are_read_at_a_size(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(COMMANDS, "nearest", (COMMANDS["nearest"][0], ()))
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as archive:
        for path in sorted((folders / "samples").iterdir()):
            archive.add(path, path.name)
    words = [f"--images={tmp_path}/shards", f"--reference={folders}/training"]
    words += ["--network=random", f"--outdir={tmp_path}/out", "--skip_unreadable"]
    with command("nearest") as run:
        with pytest.raises(ConfigError, match="as 0.tar: give --image_size"):
            run(*words)
        run(*words, "--image_size=16", "--batch_size=8")
    record = json.loads((tmp_path / "out" / "neighbours.json").read_text())
    assert record["samples_of"]["preprocessing"]["size"] == [16, 16]
    nearest = [each["neighbours"][0]["name"] for each in record["samples"]]
    assert nearest[0].endswith("17.png") and nearest[2].endswith("05.png")


def test_all_images_are_taken_unless_a_number_is_given(folders, tmp_path, monkeypatch):
    """Folders are in the order of their classes: the first ones are not all of them."""
    monkeypatch.setitem(COMMANDS, "nearest", (COMMANDS["nearest"][0], ()))
    np.savez(tmp_path / "a.npz", arr_0=np.stack([picture(k) for k in range(70)]))
    words = [f"--images={tmp_path}/a.npz", f"--reference={folders}/training"]
    words += ["--network=random", f"--outdir={tmp_path}/out", "--skip_unreadable"]
    counts = []
    with command("nearest") as run:
        for flags in ([], ["--num_samples=5"]):
            run(*words, *flags, "--batch_size=8")
            record = json.loads((tmp_path / "out" / "neighbours.json").read_text())
            counts.append(len(record["samples"]))
    assert counts == [70, 5]
