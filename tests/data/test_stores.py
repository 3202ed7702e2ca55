"""Tar shards and Parquet files in stores that do not answer, or not at once."""

import io
import pickle

import pyarrow.parquet as pq
import pytest

from ldm_jax.data.loader import make_loader
from ldm_jax.data.open_source import open_source
from ldm_jax.data.tables import ParquetSource
from ldm_jax.data.tar import TarSource, byte_ranges, index_store, shards
from ldm_jax.errors import Unreachable
from tests.data.stores import Flaky, put
from tests.data.tables import make_rows, make_table
from tests.data.tar_shards import write_shard

ROWS = make_rows(8)


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path):
    monkeypatch.setattr(byte_ranges, "_WAITS", (0.0, 0.0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Flaky, "failures", 0)
    Flaky.store.clear()


def put_parquet(path, rows, **options):
    file = io.BytesIO()
    pq.write_table(make_table(rows), file, row_group_size=2, **options)
    return put(path, file.getvalue())


def put_tar(path, numbers):
    file = io.BytesIO()
    write_shard(file, numbers)
    return put(path, file.getvalue())


def opened(kind, folder="/set"):
    if kind == "tar":
        put_tar(f"{folder}/0.tar", range(4))
        return TarSource(put_tar(f"{folder}/1.tar", range(4, 8)), "all")
    address = put_parquet(f"{folder}/0.parquet", ROWS)
    return ParquetSource(address, "all", cache_gb=3e-6)


def test_files_that_cannot_be_reached_are_not_taken_for_damaged(monkeypatch):
    put_parquet("/set/0.parquet", ROWS[:4])
    put_parquet("/set/1.parquet", ROWS[4:])
    found = shards.find_shards("flaky://set", suffix=".parquet")
    monkeypatch.setattr("ldm_jax.data.tables.parquet.find_shards", lambda *_: found)
    Flaky.failures = 99
    with pytest.raises(Unreachable, match=r"flaky://set/\d.parquet cannot be reached"):
        ParquetSource("flaky://set", "all")
    Flaky.failures = 2
    source = ParquetSource("flaky://set", "all")
    assert len(source) == 8 and source.remote
    # One that is gone, or was cut short, is that file's fault.
    Flaky.store["/set/1.parquet"].truncate(9)
    source = ParquetSource("flaky://set", "all")
    assert len(source) == 4 and source.skipped[0][0].endswith("1.parquet")
    del Flaky.store["/set/1.parquet"]
    assert len(ParquetSource("flaky://set", "all")) == 4


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_run_ends_where_its_store_does_not_answer(kind):
    source = pickle.loads(pickle.dumps(opened(kind)))
    expected = [source[k] for k in range(len(source))]
    Flaky.failures = 2
    assert source[3] == expected[3]
    Flaky.failures = 10**6
    with pytest.raises(Unreachable, match="cannot be reached.*Connection reset"):
        source[1]
    loader = make_loader(source, dict(image_size=8), batch_size=4, seed=0)
    with pytest.raises(Unreachable, match="cannot be reached"):
        next(loader)
    assert not loader.skipped


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_opening_fails_wherever_the_store_stops_to_answer(kind, monkeypatch, tmp_path):
    section = dict(source=kind, name=f"flaky://own/*.{kind}")
    section["filter"] = "height % 2 == 0"
    opened(kind, "/own")

    def open_with(answers):
        for path in [path for path in Flaky.store if path.endswith(".index")]:
            del Flaky.store[path]
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache {answers}"))
        monkeypatch.setattr(Flaky, "_answer", classmethod(_stops_after(answers)))
        Flaky.asked = 0
        return open_source(section, "all")

    count = len(open_with(10**6))
    needed = Flaky.asked
    assert 0 < count < 8 and needed >= 4
    for answers in range(needed):
        with pytest.raises(Unreachable, match="flaky://own/.*cannot be reached"):
            open_with(answers)
    assert len(open_with(needed)) == count


def _stops_after(count):
    def answer(cls, path):
        # Threads of a run that has ended may still ask for theirs.
        cls.asked += "own" in path
        if cls.asked > count:
            raise TimeoutError("timed out")

    return answer


def test_an_image_header_that_cannot_be_reached_is_no_damage(monkeypatch):
    address = put_tar("/set/0.tar", range(4))
    (shard,) = shards.find_shards(address)
    monkeypatch.setattr(index_store, "_REMOTE", 512)
    cat = Flaky.cat_file

    def once_in_the_middle(self, path, start=None, end=None, **options):
        if start and start % 512 == 0 and start > 512:
            raise TimeoutError("timed out")
        return cat(self, path, start=start, end=end, **options)

    monkeypatch.setattr(Flaky, "cat_file", once_in_the_middle)
    with pytest.raises(Unreachable, match="0.tar cannot be reached: timed out"):
        index_store.make_index(shard, None)


def test_folders_of_a_store_are_looked_through():
    put_parquet("/set/train/0.parquet", ROWS[:4])
    put_parquet("/set/train/more/1.parquet", ROWS[4:6])
    put_parquet("/set/validation/0.parquet", ROWS[6:])
    put("/set/readme.md", b"text")
    assert len(ParquetSource("flaky://set", "train")) == 6
    assert len(ParquetSource("set", "validation", "flaky://")) == 2
    assert len(ParquetSource("flaky://set/{train,validation}", "all")) == 8


def test_a_kind_of_store_that_there_is_not():
    with pytest.raises(ValueError, match="cannot open nowhere://x.tar: Protocol not"):
        TarSource("nowhere://x.tar", "all")
