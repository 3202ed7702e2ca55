"""Files in a store: written whole, read, listed, and copied to the disk once."""

import gc
import os
import threading

import numpy as np
import pytest

from ldm_jax import store
from ldm_jax.convert.compvis.write_yaml import write_yaml
from ldm_jax.errors import ConfigError, DiskError, Unreachable
from ldm_jax.evaluation.image_sets import open_images
from ldm_jax.files import (
    check_outdir,
    drafted,
    move,
    open_log,
    remove_folder,
    replacing,
    write_bytes,
    write_json,
)
from ldm_jax.images import Pixels, read_image, write_image, write_png
from ldm_jax.metrics.adm_npz import ImageFile, StoredImages
from ldm_jax.reading import read_array, read_file
from ldm_jax.sampling.sample_pixels import Beside, pixels_beside, settings_of
from ldm_jax.sharding import make_mesh
from ldm_jax.store import as_path, files_below, is_hidden, local_copy, size_of
from ldm_jax.weights.files import read_weights, write_weights
from tests.store.stand_in import Objects


def test_a_local_path_stays_one_of_pathlib(tmp_path):
    assert as_path(tmp_path) == tmp_path and type(as_path("x")) is type(tmp_path)
    assert str(as_path("~")) == os.path.expanduser("~")
    assert local_copy(tmp_path / "missing") == tmp_path / "missing"


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://", "http://host/x"])
def test_an_address_of_another_kind_is_refused(address):
    with pytest.raises(ConfigError, match="gs://bucket/name"):
        as_path(address)


def test_the_yaml_beside_weights_is_written_in_one_way(bucket):
    write_yaml(bucket / "a.yaml", {"target": "x"}, {})
    assert (bucket / "a.yaml").read_bytes() == b"model:\n  target: x\n"


def test_a_missing_library_is_one_line(bucket, monkeypatch):
    def missing(*_, **__):
        raise ImportError("gcsfs")

    store.paths._file_system.cache_clear()
    monkeypatch.setattr("fsspec.filesystem", missing)
    with pytest.raises(ConfigError, match=r"^gs:// needs .*ldm-jax\[gcs]"):
        as_path("gs://bucket/run")


def test_an_address_is_absolute_and_knows_its_files(bucket):
    assert bucket.absolute() == bucket == bucket.expanduser() == bucket.resolve()
    write_bytes(bucket / "a" / "x", b"12345")
    assert (bucket / "a" / "x").is_file() and not (bucket / "a").is_file()
    assert (bucket / "a").is_dir() and not (bucket / "b").exists()
    assert [path.name for path in bucket.iterdir()] == ["a"]
    assert list(files_below(bucket)) == [bucket / "a" / "x"]
    assert size_of(bucket / "a" / "x") == 5
    assert store.read_part(bucket / "a" / "x", 3, 9) == b"45"
    assert store.read_part(bucket / "a" / "x", 9, 9) == b""


def test_files_appear_whole_or_not_at_all(bucket):
    write_json(bucket / "x.json", {"a": 1})
    with pytest.raises(KeyError), replacing(bucket / "x.json") as temporary:
        assert temporary.suffix == ".json"
        temporary.write_text("half")
        raise KeyError
    assert read_file(bucket / "x.json", 99) == b'{\n  "a": 1\n}\n'
    with pytest.raises(ValueError, match="at most 3"):
        read_file(bucket / "x.json", 3)
    move(bucket / "x.json", bucket / "y.json")
    assert [path.name for path in files_below(bucket)] == ["y.json"]
    remove_folder(bucket)
    assert not bucket.exists()


def test_a_file_that_cannot_be_sent_leaves_nothing(bucket, monkeypatch):
    def cut(source, target, size):
        target.write(source.read(1))
        raise OSError("the network is gone")

    monkeypatch.setattr("shutil.copyfileobj", cut)
    with pytest.raises(DiskError, match="the network is gone"):
        write_json(bucket / "x.json", {})
    # Neither does a destructor send what there is.
    gc.collect()
    assert not bucket.exists()


def test_of_a_folder_what_stands_highest_is_sent_last(bucket, monkeypatch):
    sent = []
    monkeypatch.setattr("ldm_jax.files.send", lambda source, to: sent.append(str(to)))
    with drafted(bucket) as draft:
        write_bytes(draft / "mark", b"")
        write_bytes(draft / "a" / "b" / "x", b"")
        write_bytes(draft.with_suffix(".yaml"), b"")
    names = [name.removeprefix("gs://bucket/") for name in sent]
    assert names == ["run.yaml", "run/a/b/x", "run/mark"]


def test_what_a_store_refuses_is_one_line(bucket, monkeypatch):
    def refuse(*_, **__):
        raise OSError("Forbidden: no access to the bucket")

    monkeypatch.setattr(Objects, "_open", refuse)
    with pytest.raises(DiskError, match="cannot write gs://bucket/run/x: .*Forbidden"):
        write_bytes(bucket / "x", b"")


def test_what_may_not_be_listed_may_be_absent(bucket, monkeypatch, caplog, tmp_path):
    """Google says 403 of what is not there, too; on a disk the words mean another."""
    info = Objects.info

    def refuse(self, path, **options):
        try:
            return info(self, path, **options)
        except FileNotFoundError:
            raise OSError(f"Forbidden: {path}\nno storage.objects.list") from None

    monkeypatch.setattr(Objects, "info", refuse)
    write_bytes(bucket / "ref.npz", b"")
    assert pixels_beside(bucket / "ref.npz") == Beside()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "gs://bucket/run/settings.json may not be read, if it is there" in said
    error = OSError("Forbidden: no")
    assert is_hidden(bucket, error) and not is_hidden(tmp_path, error)
    assert not is_hidden(bucket, OSError("Connection reset"))


def test_an_outdir_may_not_be_an_object(bucket):
    check_outdir(bucket)
    write_bytes(bucket, b"")
    with pytest.raises(ConfigError, match="is an object"):
        check_outdir(bucket)


def test_copies_are_made_once_and_anew_for_other_contents(bucket, monkeypatch):
    write_bytes(bucket / "a" / "x.bin", b"1")
    write_bytes(bucket / "y.bin", b"2")
    copy = local_copy(bucket)
    assert copy.name == "run" and (copy / "a" / "x.bin").read_bytes() == b"1"
    monkeypatch.setattr(Objects, "get_file", None)
    assert local_copy(bucket) == copy
    monkeypatch.undo()


def test_many_files_are_copied_at_once_and_asked_for_nothing_else(bucket, monkeypatch):
    for number in range(40):
        write_bytes(bucket / f"{number:02d}.png", bytes(number))
    met, get = threading.Barrier(8), Objects.get_file

    def get_file(self, *names, **options):
        # Each of the first waits for the others.
        if names[0] < "gs://bucket/run/08":
            met.wait(20)
        return get(self, *names, **options)

    monkeypatch.setattr(Objects, "get_file", get_file)
    for name in ("ukey", "size"):
        monkeypatch.setattr(Objects, name, None)
    copy = local_copy(bucket)
    assert [path.stat().st_size for path in sorted(copy.iterdir())] == [*range(40)]


def test_a_copy_follows_its_original(bucket):
    write_bytes(bucket / "y.npy", b"2")
    first = local_copy(bucket / "y.npy")
    np.save(local := first.parent / "other.npy", np.arange(3))
    write_bytes(bucket / "y.npy", local.read_bytes())
    assert local_copy(bucket / "y.npy") != first
    assert read_array(bucket / "y.npy").tolist() == [0, 1, 2]


def test_images_and_weights(bucket):
    image = np.full((2, 3, 3), 7, np.uint8)
    write_png(bucket / "x.png", image)
    assert np.array_equal(read_image(bucket / "x.png"), image)
    for name in ("x.safetensors", "x.ckpt"):
        write_weights(bucket / name, {"a": np.arange(3, dtype=np.float32)})
        found = read_weights(bucket / name).tensors["a"]
        assert np.array_equal(np.asarray(found), [0, 1, 2])


def test_samples_are_measured_from_a_store(bucket):
    """By the settings that lie beside them there."""
    pixels = Pixels("grey", "uint16", value_range=(0, 4095))
    image = np.linspace(0, 65535, 12).astype(np.uint16).reshape(3, 4, 1)
    settings = settings_of(pixels) | {"conditions": {}, "options": {}}
    write_json(bucket / "settings.json", settings)
    for number in range(3):
        write_image(bucket / "samples" / f"{number:06d}.png", image, pixels)
    found = open_images(str(bucket / "samples"), make_mesh(), 4)
    assert found.name == "gs://bucket/run/samples" and found.count == 3
    _, batch = next(found.batches(0))
    shown = np.asarray(batch["image"])[0].astype(int)
    assert abs(shown - pixels.shown(image)).max() <= 1


def test_what_does_not_answer_is_not_taken_for_absent(bucket, monkeypatch):
    lost = type("ClientError", (OSError,), {"__module__": "aiohttp.errors"})

    def refuse(*_, **__):
        raise lost("Cannot connect to host")

    assert pixels_beside(bucket / "samples") == Beside()
    monkeypatch.setattr(Objects, "info", refuse)
    message = "gs://bucket/run/settings.json: the object store .*Cannot connect"
    with pytest.raises(Unreachable, match=message):
        pixels_beside(bucket / "samples")


def test_an_npz_of_images_is_read_as_a_stream(bucket):
    images = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
    file = ImageFile(bucket / "samples.npz", images.shape)
    file.open(again=True)
    file.write(0, images[:3])
    file.flush()
    assert ImageFile(bucket / "samples.npz", images.shape).is_begun()
    file.write(3, images[3:])
    file.finish(4, arr_1=np.arange(4))
    file.remove()
    assert [path.name for path in files_below(bucket)] == ["samples.npz"]
    found = StoredImages(bucket / "samples.npz")
    assert np.array_equal(np.concatenate(list(found.blocks(3))), images)


def test_a_log_goes_on_and_is_sent_where_it_is_asked_for(bucket):
    log = open_log(bucket / "metrics.jsonl")
    for line in (b"1\n", b"2\n", b"3\n"):
        log.write(line)
        log.flush()
    # Not at every line: the first was just now.
    assert log.path.read_bytes() == b"1\n"
    log.flush(now=True)
    assert log.path.read_bytes() == b"1\n2\n3\n"
    again = open_log(bucket / "metrics.jsonl")
    again.write(b"4\n")
    again.close()
    assert log.path.read_bytes() == b"1\n2\n3\n4\n"


def test_a_long_log_goes_on_in_another_object(bucket):
    log = open_log(bucket / "events", part=4)
    for data in (b"12345", b"6", b"789012"):
        log.write(data)
        log.flush(now=True)
    found = {path.name: path.read_bytes() for path in files_below(bucket)}
    assert found == {"events": b"12345", "events.0001": b"6789012"}


def test_bytes_are_written_by_one_request(bucket, monkeypatch):
    """What is cut between two would leave an object that is short, or empty."""
    monkeypatch.setattr(Objects, "_open", None)
    assert (bucket / "x").write_bytes(b"123") == 3
    assert Objects.objects == {"bucket/run/x": b"123"}


def test_a_log_never_raises(bucket, monkeypatch):
    log = open_log(bucket / "x")
    log.write(b"1")
    with monkeypatch.context() as patch:
        patch.setattr(Objects, "pipe_file", None)
        log.close()
        assert "the object store did not do it" in log.failure
    log.close()
    assert log.failure is None and log.path.read_bytes() == b"1"
