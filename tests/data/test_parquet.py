"""Parquet files: columns to examples, row groups, splits, what is damaged."""

import concurrent.futures
import pickle
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ldm_jax.data.open_source import open_source
from ldm_jax.data.sources import SOURCES
from ldm_jax.data.tables.parquet import ParquetSource
from ldm_jax.errors import ConfigError, DataError
from tests.data.tables import make_rows, make_table, write_parquet

ROWS = make_rows(10)


def number_of(example):
    return int(example["text"].split()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parquet")
    write_parquet(folder / "a" / "0.parquet", ROWS[:6])
    write_parquet(folder / "a" / "1.parquet", ROWS[6:])
    return folder


def open_all(name, **options):
    return SOURCES["parquet"](str(name), "all", **options)


def test_rows_are_examples(folder):
    keys = ["caption", "text", "score", "segmentation", "boxes", "box_labels"]
    source = pickle.loads(pickle.dumps(open_all(folder, keys=keys)))
    assert len(source) == 10 and source.class_names == ("cat", "dog")
    for k in (9, 0, 5, 6, 2):
        example = source[k]
        assert example["image"] == ROWS[k]["image"]["bytes"]
        assert example["segmentation"] == ROWS[k]["segmentation"]["bytes"]
        assert (example["label"], example["score"]) == (k % 2, k / 4)
        assert example["caption"] == [f"image {k}", f"number {k}"]
        assert example["boxes"].shape == (k % 3, 4)
        assert example["box_labels"].tolist() == [1] * (k % 3)
    assert source.describe(7) == f"{folder}/a/1.parquet row 1"


@pytest.mark.parametrize(
    "name", ["a/*.parquet", "a/{0..1}.parquet", "a", "", ["a/0.parquet", "a/1.parquet"]]
)
def test_names_of_files(folder, name):
    name = name if isinstance(name, list) else str(folder / name)
    source = ParquetSource(name, "all", str(folder), keys=["text"])
    assert [number_of(source[k]) for k in range(10)] == list(range(10))


def test_files_on_a_remote_system():
    import fsspec

    table = pa.BufferOutputStream()
    pq.write_table(make_table(ROWS), table)
    with fsspec.open("memory://parquet/x.parquet", "wb") as file:
        file.write(table.getvalue().to_pybytes())
    source = pickle.loads(pickle.dumps(open_all("memory://parquet/*.parquet")))
    assert len(source) == 10 and source[3]["image"] == ROWS[3]["image"]["bytes"]


def test_a_division_by_hash_stays_when_files_come(folder, tmp_path):
    sides = [
        ParquetSource(str(folder), split, validation_fraction=0.3, keys=["text"])
        for split in ("train", "validation")
    ]
    train, held_out = ({number_of(s[k]) for k in range(len(s))} for s in sides)
    assert train | held_out == set(range(10)) and not train & held_out and held_out
    write_parquet(tmp_path / "0.parquet", ROWS[:6])
    write_parquet(tmp_path / "1.parquet", ROWS[6:])
    write_parquet(tmp_path / "2.parquet", make_rows(3, 10))
    more = ParquetSource(str(tmp_path), "validation", validation_fraction=0.3)
    there = {more.describe(k).split("/")[-1] for k in range(len(more))}
    assert {s.split("/")[-1] for s in map(sides[1].describe, range(len(held_out)))} <= (
        there
    )
    assert sides[0].fingerprint() != sides[1].fingerprint()


@pytest.mark.parametrize("form", ["{}-00000-of-00001.parquet", "{}/0.parquet"])
def test_files_that_say_their_split(tmp_path, form):
    write_parquet(tmp_path / form.format("train"), ROWS[:6])
    write_parquet(tmp_path / form.format("test"), ROWS[6:])
    counts = {s: len(ParquetSource(str(tmp_path), s)) for s in ("train", "validation")}
    assert counts == {"train": 6, "validation": 4} and len(open_all(tmp_path)) == 10


def test_all_files_of_a_split_are_taken(tmp_path):
    for k, word in enumerate(["train", "training", "val", "valid", "validation"]):
        write_parquet(tmp_path / f"{word}-0.parquet", ROWS[k : k + 1])
    options = dict(keys=["text"])
    train, held_out, test = (
        ParquetSource(str(tmp_path), split, **options)
        for split in ("train", "validation", "test")
    )
    assert [number_of(train[k]) for k in range(len(train))] == [0, 1]
    assert [number_of(held_out[k]) for k in range(len(held_out))] == [2, 3, 4]
    assert len(test) == 3
    write_parquet(tmp_path / "test.parquet", ROWS[9:])
    assert len(ParquetSource(str(tmp_path), "test")) == 1
    assert len(ParquetSource(str(tmp_path), "validation")) == 3


@pytest.mark.parametrize("damaged", ["train", "validation"])
def test_a_damaged_split_is_no_other_split(tmp_path, damaged):
    for word in ("train", "validation"):
        write_parquet(tmp_path / f"{word}-0.parquet", ROWS)
    (tmp_path / f"{damaged}-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=f"none of the Parquet files of {damaged}"):
        ParquetSource(str(tmp_path), damaged)
    if damaged == "validation":
        assert len(ParquetSource(str(tmp_path), "train")) == len(ROWS)


def test_files_of_no_split_are_named(tmp_path, caplog):
    for word in ("train", "validation", "extra"):
        write_parquet(tmp_path / f"{word}-0.parquet", ROWS)
    assert len(ParquetSource(str(tmp_path), "train")) == len(ROWS)
    assert "1 Parquet files are of no split" in caplog.text
    assert len(ParquetSource(str(tmp_path), "all")) == 3 * len(ROWS)


def test_classes_without_metadata(tmp_path):
    numbers = write_parquet(tmp_path / "n.parquet", ROWS, names=None)
    assert open_all(numbers).class_names is None
    assert open_all(numbers).num_classes == 2
    rows = [row | {"label": "ab"[k % 2]} for k, row in enumerate(ROWS)]
    texts = write_parquet(tmp_path / "t.parquet", rows, names=None, label=pa.string())
    assert (
        open_all(texts).class_names == ("a", "b") and open_all(texts)[1]["label"] == 1
    )
    assert "label" not in open_all(texts, label_key="")[0]
    assert open_all(texts, label_key="").num_classes is None


def test_columns_and_sizes(folder, tmp_path, monkeypatch):
    source = open_all(folder)
    assert source.column_names == ("height", "label", "score", "text", "width")
    found = source.columns(["score", "text", "height"])
    assert found["score"].tolist() == [k / 4 for k in range(10)]
    assert found["text"][3] == "text 3" and found["height"][3] == 13
    assert source.sizes().tolist() == [[10 + k, 16] for k in range(10)]
    # Columns of sizes are taken, and a missing one is looked up.
    rows = [
        row | {"width": 7, "height": 8 if k else None} for k, row in enumerate(ROWS)
    ]
    types = {"width": pa.int32(), "height": pa.int32()}
    path = write_parquet(tmp_path / "sizes.parquet", rows, **types)
    assert open_all(path).sizes()[:2].tolist() == [[10, 16], [8, 7]]


def test_a_damaged_image_has_no_size(tmp_path):
    rows = [ROWS[0], ROWS[1] | {"image": None}, ROWS[2] | {"image": {"bytes": b"x"}}]
    source = open_all(write_parquet(tmp_path / "x.parquet", rows))
    assert source.sizes().tolist() == [[10, 16], [0, 0], [0, 0]]


def test_the_cache_is_bounded_and_shared(folder):
    source = open_all(folder, cache_gb=4.6e-6)
    table, reads = source._table, []
    assert table._group(0, 0).nbytes < 4600
    table._clear()
    read = table._read
    table._read = lambda *key: reads.append(key) or read(*key)
    assert source[0] and source[1] and reads == [(0, 0)]
    assert source[4] and source[0] and reads == [(0, 0), (0, 1), (0, 0)]
    assert len(table._groups) == 1
    assert table._held == table._group(0, 0).nbytes
    table._most = 1e9
    threads = [threading.Thread(target=source.__getitem__, args=(9,)) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert reads[3:] == [(1, 0)] and len(table._groups) == 2
    assert table._held == sum(slot.table.nbytes for slot in table._groups.values())


def test_row_groups_that_are_larger_than_the_cache(folder, tmp_path):
    with pytest.raises(
        ValueError, match="1.parquet has row groups of .*cache_gb=1e-06"
    ):
        open_all(folder, cache_gb=1e-6)
    # A value that is written once and unpacked a thousand times.
    image = {"bytes": bytes(10_000), "path": None}
    rows = [{"image": image, "label": 0} for _ in range(1000)]
    path = write_parquet(tmp_path / "x.parquet", rows, group=1000)
    with pytest.raises(
        ValueError, match="row group 0 cannot be read: it unpacks to mor"
    ):
        open_all(path, cache_gb=1e-3)[0]


def test_row_groups_that_are_read_at_once_have_room(folder):
    table = open_all(folder, cache_gb=4.6e-6)._table
    unpack, most = table._unpack, []

    def watched(opened, group, size):
        most.append(table._pending)
        time.sleep(0.01)
        return unpack(opened, group, size)

    table._unpack = watched
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(table.row, [0, 4, 6, 9] * 3))
    assert [row["label"] for row in rows] == [0, 0, 0, 1] * 3
    assert max(most) <= 4600 and len(most) >= 3 and not table._pending


def test_large_row_groups_are_told(folder, monkeypatch, caplog):
    monkeypatch.setattr("ldm_jax.data.tables.parquet._DEAR", 10)
    with caplog.at_level("WARNING"):
        open_all(folder)
    assert "row_group_size" in caplog.text and "huggingface" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "image is null"),
        ({"image": {"path": "/etc/passwd"}}, "only the path /etc/passwd"),
        ({"label": None}, "label is null"),
        ({"label": -1}, "label -1 is none of the 2 classes; give label_key"),
        ({"label": 2}, "label 2 is none of the 2 classes"),
    ],
)
def test_rows_that_are_no_example(tmp_path, change, message):
    path = write_parquet(tmp_path / "x.parquet", [ROWS[0], ROWS[1] | change])
    source = open_all(path)
    assert source[0]
    with pytest.raises(ValueError, match=message):
        source[1]


def test_a_null_leaves_its_key_out(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", [ROWS[0] | {"caption": None}])
    assert "caption" not in open_all(path, keys=["caption"])[0]


def test_damaged_files_are_left_out_and_listed(tmp_path):
    good = write_parquet(tmp_path / "a.parquet", ROWS)
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[:-9])
    rows = [row | {"label": str(row["label"])} for row in ROWS]
    write_parquet(tmp_path / "c.parquet", rows, label=pa.string())
    source = open_all(tmp_path)
    assert len(source) == 10
    (cut, why), (strange, what) = source.skipped
    assert cut.endswith("b.parquet") and "cannot be read as Parquet" in why
    assert why.endswith("was cut short or is of another format: copy it again")
    assert strange.endswith("c.parquet")
    assert what == f"its column label is string, and int64 in {good}"
    with pytest.raises(DataError, match="b.parquet: it cannot be read as Parquet"):
        open_all(tmp_path, on_error="raise")
    with pytest.raises(ValueError, match="no rows in 1 files; .*b.parquet"):
        open_all(tmp_path / "b.parquet")


def test_a_damaged_row_group_is_that_rows_fault(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, ROWS)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    with open(path, "r+b") as file:
        file.seek(column.data_page_offset)
        file.write(bytes(64))
    source = open_all(path)
    assert source[0]["image"] == ROWS[0]["image"]["bytes"]
    with pytest.raises(ValueError, match="row group 1 cannot be read"):
        source[5]
    assert source[8]["image"] == ROWS[8]["image"]["bytes"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(name="nowhere"), "cannot read .*nowhere: there is no such file"),
        (dict(name="b"), "no .parquet files in .*b or below"),
        (dict(name=""), "name is empty; .*000..00099}.parquet"),
        (dict(split="dev"), 'the splits train, .* not "dev"'),
        (dict(image_key="imag"), r'image_key="imag": .*no column "imag"; .*"image"\?$'),
        (dict(label_key="nope"), 'label_key="nope": .* "nope"; choose from [^:]*$'),
        (dict(image_key="score"), 'image_key="score": the column holds double'),
        (dict(label_key="score"), 'label_key="score": the column holds double'),
        (dict(keys=["captoin"]), 'no column "captoin"; .*caption'),
        (dict(keys=["objects.box"]), 'no "box" in column objects'),
    ],
)
def test_errors_say_what_to_change(folder, options, message):
    (folder / "b").mkdir(exist_ok=True)
    section = dict(source="parquet", name="a", data_dir=str(folder), image_size=8)
    section |= options
    with pytest.raises(ConfigError, match=message):
        open_source(section, section.pop("split", "all"))


def test_which_column_is_the_image(tmp_path):
    rows = [{"img": row["image"], "x": row["segmentation"]} for row in ROWS]
    types = {"img": make_table(ROWS).schema.field("image").type, "x": pa.binary()}
    rows = [row | {"x": row["x"]["bytes"]} for row in rows]
    path = write_parquet(tmp_path / "x.parquet", rows, **types)
    with pytest.raises(ValueError, match="2 columns can be images and none is called"):
        open_all(path)
    assert open_all(path, image_key="x")[0]["image"] == rows[0]["x"]
    only = write_parquet(tmp_path / "y.parquet", [{"img": rows[0]["img"]}], **types)
    assert open_all(only)[0]["image"] == ROWS[0]["image"]["bytes"]


def test_a_caption_that_is_no_text(tmp_path):
    rows = [{"image": ROWS[0]["image"], "caption": 3}]
    path = write_parquet(tmp_path / "x.parquet", rows, caption=pa.int64())
    with pytest.raises(ValueError, match="column caption holds int64; captions are"):
        open_all(path, keys=["caption"])


# ---- Files that say the same in other ways.


def write_kinds(folder):
    """Two files, whose columns have other types of Arrow for the same; rows 0 to 9."""
    bytes_type = pa.struct({"path": pa.large_string(), "bytes": pa.large_binary()})
    types = dict(
        image=bytes_type,
        label=pa.int32(),
        caption=pa.large_list(pa.large_string()),
        text=pa.dictionary(pa.int8(), pa.string()),
    )
    write_parquet(folder / "0.parquet", ROWS[:6])
    write_parquet(folder / "1.parquet", ROWS[6:], **types)
    return str(folder)


def test_types_that_hold_the_same_go_together(tmp_path):
    source = open_all(write_kinds(tmp_path), keys=["caption", "text"])
    assert len(source) == 10 and not source.skipped
    assert [source[k]["text"] for k in (5, 6)] == ["text 5", "text 6"]
    assert source[8]["caption"] == ["image 8", "number 8"] and source[9]["label"] == 1
    assert source.columns(["text"])["text"].tolist() == [f"text {k}" for k in range(10)]
    rows = [row | {"text": row["text"].encode(), "caption": None} for row in ROWS]
    types = dict(text=pa.large_binary(), caption=pa.null())
    write_parquet(tmp_path / "large" / "x.parquet", rows, **types)
    large = open_all(tmp_path / "large", keys=["text", "caption"])
    assert large[3]["text"] == b"text 3" and "caption" not in large[3]
    # All files are alike but for the text, which is bytes in one.
    both = open_all(tmp_path, keys=["caption"])
    assert len(both) == 20 and both[9]["caption"] == ["image 9", "number 9"]


def test_columns_that_not_all_files_have(tmp_path):
    extra = [row | {"age": 3, "lang": "en"} for row in ROWS[:4]]
    types = dict(age=pa.int64(), lang=pa.string())
    write_parquet(tmp_path / "1.parquet", extra, **types)
    write_parquet(tmp_path / "0.parquet", ROWS[4:6])
    halves = [row | {"age": 2.5, "lang": None} for row in ROWS[6:]]
    types = dict(age=pa.float32(), lang=pa.null())
    write_parquet(tmp_path / "2.parquet", halves, **types)
    source = open_all(tmp_path)
    assert {"age", "lang"} <= {*source.column_names} and len(source) == 10
    found = source.columns(["age", "lang"])
    assert str(found["age"].tolist()) == str([float("nan")] * 2 + [3.0] * 4 + [2.5] * 4)
    assert found["lang"].tolist() == [None] * 2 + ["en"] * 4 + [None] * 4
    section = dict(source="parquet", name=str(tmp_path), filter="lang == 'en'")
    assert len(open_source(section, "all")) == 4


def test_columns_that_do_not_go_together_are_named(tmp_path):
    write_parquet(tmp_path / "0.parquet", [row | {"age": "old"} for row in ROWS[:4]])
    rows = [row | {"age": 3} for row in ROWS[4:]]
    write_parquet(tmp_path / "1.parquet", rows, age=pa.int64())
    write_parquet(
        tmp_path / "0.parquet", [r | {"age": "o"} for r in ROWS[:4]], age=pa.string()
    )
    with pytest.raises(
        ConfigError, match="column age of .*1.parquet is int64, and str"
    ):
        section = dict(source="parquet", name=str(tmp_path), filter="age == 3")
        open_source(section, "all")


def test_a_class_or_image_in_a_struct_is_refused(folder):
    for name, inner in (("image_key", "image.bytes"), ("label_key", "image.path")):
        with pytest.raises(ValueError, match="lies in a struct: give a column of its"):
            open_all(folder, **{name: inner})


@pytest.mark.parametrize("names", [["cat", "dog"], None])
def test_other_labels_or_classes_make_another_set(tmp_path, names):
    path = tmp_path / "x.parquet"
    write_parquet(path, ROWS, names=names)
    first, footer = open_all(path).fingerprint(), pq.read_metadata(path)
    assert first == open_all(path).fingerprint()
    # The same number of each class: neither the footer nor the size tells.
    rows = [row | {"label": 1 - row["label"]} for row in ROWS]
    write_parquet(path, rows, names=names)
    assert pq.read_metadata(path).row_group(0) == footer.row_group(0)
    assert open_all(path).fingerprint() != first
    assert open_all(path, label_key="").fingerprint() != first
    write_parquet(path, ROWS, names=["dog", "cat"])
    assert open_all(path).fingerprint() != first
    # Captions of the same length.
    rows = [row | {"text": row["text"].replace("text", "xxxx")} for row in ROWS]
    write_parquet(path, rows, names=names)
    assert open_all(path).fingerprint() != first
