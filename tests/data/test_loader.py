"""The loader: order, sharding, resuming, evaluation, and files that cannot be read."""

import dataclasses
import multiprocessing
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

import ldm_jax
from ldm_jax.data import workers
from ldm_jax.data.load_batch import LoaderOptions
from ldm_jax.data.loader import DataError, Loader, make_loader
from ldm_jax.data.open_source import open_source
from ldm_jax.data.sources import SOURCES
from ldm_jax.errors import ConfigError, ProcessLost
from tests.data.common import SIZE, TRAIN, VALIDATION, make_image, write_images
from tests.data.tables import make_rows, save_to_disk, write_parquet
from tests.data.tar_shards import write_shards


class Images:
    """A source in memory: the label of example i is i; some cannot be decoded."""

    num_classes, class_names = None, None

    def __init__(self, count, broken=()):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = b"no image" if index in self.broken else make_image(12, 8, index)
        return {"image": image, "label": index}

    def describe(self, index):
        return f"image {index}"


def load(source, steps=None, **options):
    """Reads some batches, or all."""
    fields = [field.name for field in dataclasses.fields(LoaderOptions)]
    cut = {key: options.pop(key) for key in fields if key in options}
    batches = Loader(source, LoaderOptions(8, **cut), **options)
    try:
        if steps is None:
            return list(batches), batches.skipped
        return [next(batches) for _ in range(steps)], batches.skipped
    finally:
        batches.close()


def labels(batches):
    return [batch["label"].tolist() for batch in batches]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def config(data_dir, **changes):
    section = dict(
        source="tfds",
        name=f"shapes/{SIZE}",
        data_dir=data_dir,
        split="train",
        eval_split="validation",
        image_size=16,
        crop="center",
        flip=False,
        workers=0,
        on_error="skip",
    )
    return ConfigDict(section | changes)


def test_batches_are_what_the_section_says(array_record_dir):
    keys = ("caption", "segmentation", "depth", "boxes", "box_labels")
    data = config(array_record_dir, keys=keys, crop="random", flip=True)
    source = open_source(data, data.split)
    assert source.num_classes == 8 and len(source) == TRAIN
    batches = make_loader(source, data, batch_size=6, seed=0)
    batch = next(batches)
    batches.close()
    found = {key: (value.shape, value.dtype) for key, value in batch.items()}
    assert found == {
        "image": ((6, 16, 16, 3), np.uint8),
        "label": ((6,), np.int32),
        "caption": ((6,), object),
        "segmentation": ((6, 16, 16), np.int32),
        "depth": ((6, 16, 16, 1), np.float32),
        "boxes": ((6, 100, 4), np.float32),
        "box_labels": ((6, 100), np.int32),
    }
    assert all(isinstance(caption, str) for caption in batch["caption"])
    np.testing.assert_array_equal(batch["box_labels"][:, 0], batch["label"])


def test_every_epoch_has_every_example_once_in_another_order():
    batches, _ = load(Images(24), 6, batch_size=8)
    epochs = np.reshape(labels(batches), (2, 24))
    for epoch in epochs:
        assert sorted(epoch) == list(range(24))
    assert list(epochs[0]) != list(epochs[1]) and list(epochs[0]) != list(range(24))


def test_the_seed_decides():
    options = dict(steps=4, batch_size=4, crop="random", flip=True)
    first, _ = load(Images(20), seed=1, **options)
    again, _ = load(Images(20), seed=1, **options)
    other, _ = load(Images(20), seed=2, **options)
    assert_same(first, again)
    assert labels(first) != labels(other)


def test_all_bits_of_a_seed_decide():
    options = dict(steps=1, batch_size=8, crop="random", min_crop=0.5)
    seeds = (0, 2**32, 2**63, 2**64 - 1)
    runs = [load(Images(32), seed=seed, **options)[0] for seed in seeds]
    orders = {tuple(labels(run)[0]) for run in runs}
    assert len(orders) == len(seeds)


def test_crops_and_mirroring_differ_between_epochs():
    batches, _ = load(Images(2), 12, batch_size=2, crop="random", flip=True)
    images = {
        image.tobytes()
        for batch in batches
        for image, label in zip(batch["image"], batch["label"], strict=True)
        if label == 0
    }
    assert len(images) > 4


@pytest.mark.parametrize("start", [1, 5, 1_000_000])
def test_position_is_the_step(start):
    options = dict(batch_size=4, crop="random", flip=True, seed=3)
    if start < 100:
        whole, _ = load(Images(10), start + 3, **options)
        resumed, _ = load(Images(10), 3, start_step=start, **options)
        assert_same(whole[start:], resumed)
    else:
        load(Images(10), 1, start_step=start, **options)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("train", [True, False])
def test_processes_share_the_batch_of_one(count, train):
    options = dict(batch_size=8, crop="random", flip=True, train=train)
    steps = 4 if train else None
    whole, _ = load(Images(30, broken={4}), steps, **options)
    parts = [
        load(
            Images(30, broken={4}),
            steps,
            rows=np.split(np.arange(8), count)[process],
            **options,
        )[0]
        for process in range(count)
    ]
    joined = [
        {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
        for batches in zip(*parts, strict=True)
    ]
    assert_same(whole, joined)


def test_a_data_set_smaller_than_a_batch_is_repeated():
    batches, _ = load(Images(3), 2, batch_size=8)
    seen = np.concatenate(labels(batches))
    assert len(seen) == 16 and set(np.bincount(seen)) <= {5, 6}


def test_evaluation_is_one_pass_in_order():
    batches, _ = load(Images(10), batch_size=4, train=False, crop="random", flip=True)
    assert [batch["mask"].tolist() for batch in batches] == [
        [True] * 4,
        [True] * 4,
        [True, True, False, False],
    ]
    seen = np.concatenate(labels(batches))[:10]
    assert list(seen) == list(range(10))
    assert all(batch["image"].shape == (4, 8, 8, 3) for batch in batches)
    expected, _ = load(Images(10), batch_size=4, train=False)
    assert_same(batches, expected)


def test_images_of_no_class_have_no_labels(tmp_path):
    write_images(tmp_path, ["a.png", "b.jpg", "c.png"])
    data = config(None, source="folder", name=str(tmp_path), validation_fraction=0.3)
    batches = make_loader(open_source(data, "all"), data, batch_size=2, seed=0)
    assert set(next(batches)) == {"image"}
    batches.close()


# ---- Files that cannot be read.


def test_broken_examples_are_replaced_and_named_once(caplog):
    source = Images(12, broken={3, 7})
    batches, skipped = load(source, 12, batch_size=4)
    seen = np.concatenate(labels(batches))
    assert len(seen) == 48 and not {3, 7} & set(seen)
    assert set(skipped) == {"image 3", "image 7"}
    messages = [record.getMessage() for record in caplog.records]
    assert sum("image 3" in message for message in messages) == 1
    assert "skipped 2 of 12 examples that cannot be read" in messages
    # The others are where they would have been.
    whole, _ = load(Images(12), 12, batch_size=4)
    for found, expected in zip(seen, np.concatenate(labels(whole)), strict=True):
        assert found == expected or expected in (3, 7)
    again, _ = load(source, 12, batch_size=4)
    assert_same(batches, again)


def test_broken_examples_do_not_count_in_evaluation():
    batches, skipped = load(Images(6, broken={1}), batch_size=4, train=False)
    masks = np.concatenate([batch["mask"] for batch in batches])
    assert masks.tolist() == [True, False, True, True, True, True, False, False]
    assert list(skipped) == ["image 1"]


@pytest.mark.parametrize("train", [True, False])
def test_all_broken_is_an_error(train):
    with pytest.raises(DataError, match="100 attempts in a row .* image .*identify"):
        load(Images(5, broken=range(5)), 1, batch_size=2, train=train)


def test_raise_names_the_first(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    broken = tmp_path / "b.png"
    broken.write_bytes(broken.read_bytes()[:100])
    data = config(None, source="folder", name=str(tmp_path), on_error="raise")
    batches = make_loader(open_source(data, "all"), data, batch_size=2, seed=0)
    with pytest.raises(DataError, match=f"cannot read {broken}: .*truncated") as error:
        next(batches)
    assert "\n" not in str(error.value)
    with pytest.raises(StopIteration):
        next(batches)


def test_a_file_that_has_gone_is_skipped(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    source = SOURCES["folder"](str(tmp_path), "all")
    (tmp_path / "b.png").unlink()
    _, skipped = load(source, 1, batch_size=4)
    assert skipped == {str(tmp_path / "b.png"): "No such file or directory"}


# ---- Worker processes.


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers, tmp_path):
    names = [f"{kind}/{index}.png" for kind in "ab" for index in range(6)]
    write_images(tmp_path, names)
    (tmp_path / "a" / "3.png").write_bytes(b"damaged")
    source = SOURCES["folder"](str(tmp_path), "all")
    options = dict(batch_size=4, crop="random", flip=True, start_step=2)
    expected, skipped = load(source, 6, **options)
    found, skipped_by_workers = load(source, 6, workers=workers, **options)
    assert_same(expected, found)
    assert skipped == skipped_by_workers and len(skipped) == 1


@pytest.mark.parametrize(
    ("num_workers", "remote", "threads"),
    [(0, False, 4), (1, False, 4), (3, False, 3), (8, False, 1), (8, True, 4)],
)
def test_workers_have_as_many_threads_as_there_are_cores(
    num_workers, remote, threads, monkeypatch
):
    started = []
    monkeypatch.setattr(workers, "_cores", lambda: 8)
    # Nothing runs that would have to be closed.
    monkeypatch.setattr(
        workers, "_start", lambda *_, **options: started.append(options)
    )
    source = Images(9)
    source.remote = remote
    Loader(source, LoaderOptions(8, workers=num_workers), batch_size=4)
    assert [options["threads"] for options in started] == [threads]


def test_workers_do_without_shared_memory(monkeypatch):
    monkeypatch.setattr(workers, "_free_shared_memory", lambda: 1000)
    expected, _ = load(Images(9), 2, batch_size=4)
    found, _ = load(Images(9), 2, batch_size=4, workers=1)
    assert_same(expected, found)


def test_a_killed_worker_is_replaced_then_named(caplog):
    expected, _ = load(Images(9), 8, batch_size=4)
    options = LoaderOptions(8, workers=1, restart_workers=1)
    batches = Loader(Images(9), options, batch_size=4)
    try:
        found = [next(batches) for _ in range(2)]
        _kill_workers()
        found += [next(batches) for _ in range(6)]
        assert_same(expected, found)
        assert "was killed by SIGKILL" in caplog.text
        assert "the same batches (0 more times)" in caplog.text
        _kill_workers()
        with pytest.raises(ProcessLost, match="SIGKILL.*memory.*data.workers") as error:
            for _ in range(8):
                next(batches)
        assert "data.restart_workers" in str(error.value)
        with pytest.raises(StopIteration):
            next(batches)
    finally:
        batches.close()


class EndsWorkers(Images):
    """A source that ends the process it is sent to, as an unguarded script does."""

    def __reduce__(self):
        return sys.exit, (1,)


def test_a_worker_that_cannot_start_names_the_guard():
    options = LoaderOptions(8, workers=1, restart_workers=3)
    batches = Loader(EndsWorkers(9), options, batch_size=4)
    with pytest.raises(ProcessLost, match="status 1 before its first batch") as error:
        next(batches)
    assert 'if __name__ == "__main__"' in str(error.value)
    assert "restart_workers" not in str(error.value)


def _kill_workers():
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-9, "was killed by SIGKILL, as the system does where memory"),
        (-7, "was killed by SIGBUS, as where /dev/shm is full"),
        (-11, "was killed by SIGSEGV"),
        (3, "ended with status 3"),
    ],
)
def test_how_a_worker_ended_is_said(code, words):
    assert workers._cause(code).startswith(words)


SCRIPT = """
import os
import signal
import sys

from ldm_jax.data.loader import make_loader
from ldm_jax.data.open_source import open_source

if __name__ == "__main__":
    data = dict(source="tfds", name="shapes/32", data_dir=sys.argv[1], image_size=16)
    source = open_source(data, "train")
    loader = make_loader(source, data | {"workers": 1}, batch_size=8, seed=0)
    batch = next(loader)
    print(batch["image"].shape, flush=True)
    if sys.argv[2] == "close":
        loader.close()
    if sys.argv[2] == "fail":
        raise SystemExit(3)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("ending", "status"), [("close", 0), ("leave", 0), ("fail", 3), ("kill", -9)]
)
def test_a_program_ends_without_tracebacks(ending, status, array_record_dir, tmp_path):
    script = tmp_path / "main.py"
    script.write_text(SCRIPT)
    result = subprocess.run(
        [sys.executable, str(script), array_record_dir, ending],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(pathlib.Path(ldm_jax.__file__).parents[1])},
    )
    # The call also waits for the workers, which hold the other ends of the pipes.
    assert result.returncode == status
    assert result.stdout == "(8, 16, 16, 3)\n"
    assert "Traceback" not in result.stderr
    assert result.stderr == "" or ending == "kill"


# ---- Wrong options.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(source="tfd"), 'data.source="tfd" is unknown; did you mean "tfds"'),
        (dict(imagesize=3), 'data.imagesize is not an option; did you mean "image_si'),
        (dict(name="shapes/999"), "data: shapes/999 is not prepared"),
        (dict(source="folder", name="/nowhere"), "data: folder /nowhere does not"),
        (dict(split="dev"), 'data: .* has no split "dev"'),
        (dict(crop="centre"), 'data: crop="centre" is unknown; did you mean "center"'),
        (dict(on_error="ignore"), 'data: on_error="ignore" is unknown'),
        (dict(workers=-1), "data.workers must be from 0 to .*, got -1"),
        (dict(image_size=0), "data.image_size must be from 1 to .*, got 0"),
    ],
)
def test_wrong_options_are_one_line_errors(array_record_dir, changes, message):
    data = config(array_record_dir, **changes)
    with pytest.raises(ConfigError, match=message) as error:
        make_loader(open_source(data, data.split), data, batch_size=2, seed=0)
    assert "\n" not in str(error.value)


def _write_folder(folder):
    write_images(folder, [f"{name}/{i}.png" for name in "ab" for i in range(8)])
    return str(folder)


def _write_tar(folder):
    return write_shards(folder, cls=lambda number: (b"a", b"b")[number % 2])


def _write_parquet(folder):
    return write_parquet(folder / "x.parquet", make_rows(9))


def _save_to_disk(folder):
    return save_to_disk(folder, make_rows(9))


# What writes a set with classes to a folder, and gives its name.
WRITERS = {
    "tfds": lambda folder: f"shapes/{SIZE}",
    "folder": _write_folder,
    "tar": _write_tar,
    "parquet": _write_parquet,
    "huggingface": _save_to_disk,
    "mixture": _write_folder,
}


# Latents have no images, and tests of their own.
@pytest.mark.parametrize("kind", sorted(SOURCES.keys() - {"latents"}))
def test_sources_keep_their_contract(kind, array_record_dir, tmp_path):
    name = WRITERS[kind](tmp_path / "set")
    data = config(array_record_dir, source=kind, name=name)
    data.parts = {"a": {"source": "folder"}, "b": {"source": "folder", "weight": 0.1}}
    source = open_source(data, "train")
    held_out = open_source(data, "validation")
    assert len(source) > 0 and len(held_out) > 0
    assert len(source.class_names) == source.num_classes
    for index in range(len(source)):
        example = source[index]
        assert 0 <= example["label"] < source.num_classes
        assert isinstance(example["image"], bytes) and source.describe(index)
        assert source[index] == example
    assert source.sizes().shape == (len(source), 2) and (source.sizes() > 0).all()
    columns = source.columns(source.column_names)
    assert {"width", "height"} <= columns.keys()
    assert {column.shape for column in columns.values()} == {(len(source),)}
    if kind == "tfds":
        assert len(held_out) == VALIDATION
