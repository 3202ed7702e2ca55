"""Filters: what they may hold, what they keep, on every source."""

import json
import struct
import tarfile
import zlib

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from ldm_jax.data.filters import Filter
from ldm_jax.data.folder import FolderSource
from ldm_jax.data.loader import make_loader
from ldm_jax.data.open_source import open_source
from ldm_jax.data.sources import keep, part
from ldm_jax.data.tar import TarSource
from ldm_jax.errors import ConfigError, DecodeError
from ldm_jax.images import find_size
from tests.data.common import write_images
from tests.data.tar_shards import add, metadata, write_shards

COLUMNS = {
    "score": np.array([1.0, 5.0, 6.5, np.nan]),
    "width": np.array([512.0, 256.0, 1024.0, 512.0]),
    "language": np.array(["en", None, "de", "EN"], object),
    "safe": np.array([True, False, True, True]),
    "maybe": np.array([True, None, False, None], object),
    "exif.iso": np.array([100.0, np.nan, 200.0, 400.0]),
    "nothing": np.full(4, np.nan),
    "mixed": np.array(["a", 1.0, None, True], object),
}


def kept(text):
    test = Filter(text)
    return np.flatnonzero(test({n: COLUMNS[n] for n in test.names}, 4)).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("score > 5", [2]),
        ("score >= 5 and width >= 512", [2]),
        ("score < 6 or safe", [0, 1, 2, 3]),
        ("not safe", [1]),
        ("1 <= score <= 5", [0, 1]),
        ("language == 'en'", [0]),
        ("lower(language) == 'en'", [0, 3]),
        ('language in ("en", "de")', [0, 2]),
        ("language not in ['en']", [2, 3]),
        ("language in [None, 'de']", [1, 2]),
        ("'e' in language", [0, 2]),
        ("'e' not in language", [3]),
        ("language is None", [1]),
        ("language != None", [0, 2, 3]),
        # What is missing fits no comparison.
        ("score != 5", [0, 2]),
        ("language != 'en'", [2, 3]),
        ("not score > 5", [0, 1, 3]),
        ("score == None", [3]),
        ("safe == True", [0, 2, 3]),
        ("safe == 0", [1]),
        ("maybe", [0]),
        ("not maybe", [1, 2, 3]),
        ("maybe == False", [2]),
        ("width / 2 - 256 == 0", [0, 3]),
        ("width % 512 == 0 and -score < -1", [2]),
        ("width / (score - 1) > 0", [1, 2]),
        ("width * (score + 1) >= 512 * 2", [0, 1, 2]),
        ("len(language) == 2", [0, 2, 3]),
        ("exif.iso > 100", [2, 3]),
        ("nothing > 1 or nothing == 'x' or nothing", []),
        ("nothing is None", [0, 1, 2, 3]),
        ("language > 'a'", [0, 2]),
        ("1 < 2", [0, 1, 2, 3]),
        ("False", []),
        ("  (safe)  ", [0, 2, 3]),
    ],
)
def test_what_filters_keep(text, expected):
    assert kept(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("score >", "cannot be read"),
        ("", "cannot be read"),
        ("score = 5", "cannot be read"),
        ("score; safe", "cannot be read"),
        ("__import__('os').system('x')", "not for filters"),
        ("().__class__", "not for filters"),
        ("[s for s in safe]", "not for filters"),
        ("(lambda: 1)()", "not for filters"),
        ("score[0] > 1", "not for filters"),
        ("9 ** 9 > 1", "not for filters"),
        ("len(language, language) > 1", "not for filters"),
        ("eval('1') > 1", "not for filters"),
        ("f'{score}' == 'x'", "not for filters"),
        ("b'x' == language", "b'x' is no number"),
        ("(" * 300 + "1" + ")" * 300, "cannot be read"),
        ("not " * 200 + "safe", "brackets in brackets|cannot be read"),
        ("1 < 2 and " * 2000 + "safe", "characters"),
        ("score", "score is a number: compare it with something"),
        ("score and safe", "score is a number"),
        ("language > 5", "language > 5: language is text, and 5 is a number"),
        ("score == 'high'", "score is a number, and 'high' is text"),
        ("score in 5", "5 is a number; text can be in text or in a list"),
        ("language + 'x' == 'enx'", "language is text, not a number"),
        ("len(score) > 1", "score is a number, not text"),
        ("mixed > 5", "mixed is of several types"),
        ("score < None", "None is None, which cannot be compared"),
        ("score is 5", '"is" is for None'),
        ("10" + "0" * 400 + " > score", "is too large"),
    ],
)
def test_what_is_refused_is_said_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        kept(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def _section(tmp_path, kind, **options):
    section = dict(source=kind, name=str(tmp_path / kind), **options)
    return ConfigDict(common.data(**section))


def test_a_filter_of_tar_shards_is_that_of_their_metadata(tmp_path):
    write_shards(tmp_path / "tar")
    text = "aesthetic > 2 and width >= 26 and language == 'en'"
    source = open_source(_section(tmp_path, "tar", filter=text, keys=("key",)), "all")
    expected = [
        row["key"]
        for row in map(metadata, range(30))
        if row["aesthetic"] > 2 and row["width"] >= 26 and row["language"] == "en"
    ]
    assert len(expected) > 2 and len(source) == len(expected)
    assert [source[i]["key"] for i in range(len(source))] == expected
    assert source.describe(0).endswith(expected[0])
    # It has all that a source has.
    assert source.sizes().shape == (len(source), 2) and source.num_classes == 3
    columns = source.columns(["width", "language"])
    assert (columns["width"] >= 26).all() and set(columns["language"]) == {"en"}
    everything = open_source(_section(tmp_path, "tar"), "all")
    assert source.fingerprint() != everything.fingerprint()
    assert part(source, 1).sizes().shape == (len(source) - 1, 2)


def test_a_filter_of_a_folder_reads_the_json_beside_its_images(tmp_path):
    write_images(tmp_path / "folder", [f"{i}.png" for i in range(4)], size=(8, 6))
    write_images(tmp_path / "folder", ["4.jpg"], size=(20, 6))
    for number in range(3):
        text = json.dumps({"score": number, "inner": {"x": str(number)}})
        (tmp_path / "folder" / f"{number}.json").write_text(text)
    (tmp_path / "folder" / "3.json").write_text("{")
    source = open_source(_section(tmp_path, "folder"), "all")
    assert source.column_names == ("height", "inner.x", "score", "width")
    assert source.sizes().tolist() == [[6, 8]] * 4 + [[6, 20]]
    np.testing.assert_array_equal(
        source.columns(["score"])["score"], [0, 1, 2, np.nan, np.nan]
    )
    (bad,) = source.skipped
    assert bad[0].endswith("3.json") and "no JSON" in bad[1]
    assert len(keep(source, "inner.x in ['1', '2'] or width > 10")) == 3


def test_a_filter_of_a_prepared_data_set_reads_its_features(array_record_dir):
    section = dict(source="tfds", name="shapes/32", data_dir=array_record_dir)
    source = open_source(section, "train")
    assert {"label", "width", "height"} <= set(source.column_names)
    labels = [source[i]["label"] for i in range(len(source))]
    assert source.columns(["label"])["label"].tolist() == labels
    assert source.sizes().tolist() == [[32, 32]] * len(source)
    fits = keep(source, f"label == {labels[0]} and width == 32")
    assert len(fits) == labels.count(labels[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("astetic > 5", 'there is no astetic; did you mean "aesthetic"'),
        ("aesthetic > 500", "keeps none of 30 examples"),
        ("aesthetic > 'x'", "data.filter=.*aesthetic is a number, and 'x' is text"),
        ("aesthetic >", "data.filter=.*cannot be read"),
    ],
)
def test_errors_name_the_key(tmp_path, text, message):
    write_shards(tmp_path / "tar")
    with pytest.raises(ConfigError, match=message):
        open_source(_section(tmp_path, "tar", filter=text), "all")


def test_batches_hold_only_what_is_kept(tmp_path):
    write_shards(tmp_path / "tar", shards=1)
    section = _section(tmp_path, "tar", filter="watermark", keys=("key",), image_size=8)
    source = open_source(section, "all")
    loader = make_loader(source, section, batch_size=3, seed=0)
    found = {key for _ in range(3) for key in next(loader)["key"]}
    loader.close()
    assert found == {f"{number:09d}" for number in (0, 4, 8)}


# ---- Sizes from headers.


def huge_png(width, height):
    """A PNG whose header announces any size."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [struct.pack(">I", 13), chunk, struct.pack(">I", zlib.crc32(chunk))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + struct.pack(">I", 0) + b"IDAT"


def test_sides_that_no_image_has_are_no_sizes(tmp_path):
    data = huge_png(2**32 - 1, 2**31)
    with pytest.raises(DecodeError, match="no image has so many"):
        find_size(lambda at, n: data[at : at + n], len(data))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(data)
    assert FolderSource(str(tmp_path / "images"), "all").sizes().tolist() == [[0, 0]]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "a.png", data)
    source = TarSource(str(tmp_path / "a.tar"), "all")
    assert source.sizes().tolist() == [[0, 0]]


def test_pixels_are_not_decoded_for_a_size():
    """Pillow would, to look for Exif data behind them."""
    data = huge_png(60_000, 60_000)
    text = b"tEXtRaw profile type exif\0"
    chunk = struct.pack(">I", len(text) - 4) + text
    chunk += struct.pack(">I", zlib.crc32(text))
    data = data[:33] + chunk + data[33:]
    assert find_size(lambda at, n: data[at : at + n], len(data)) == (60_000, 60_000)


def test_what_is_read_for_a_size_is_limited():
    asked = []

    def read(at, count):
        asked.append(at + count)
        return bytes(min(count, 100))

    with pytest.raises(DecodeError):
        find_size(read, 10**13)
    assert max(asked) == 2**26


class Sized:
    """A source that knows the sizes of its images and no columns."""

    def __len__(self):
        return 3

    def sizes(self):
        return np.array([[8, 16], [16, 32], [0, 0]], np.int32)


def test_sizes_are_columns_of_every_source_that_has_them():
    assert keep(Sized(), "width > 16")._indices.tolist() == [1]
    with pytest.raises(ConfigError, match="no score; choose from height, width"):
        keep(Sized(), "score > 1")


def test_a_source_without_columns_says_so():
    with pytest.raises(ConfigError, match="no width: this source knows nothing"):
        keep(range(3), "width > 16")


def test_a_folder_keeps_the_columns_that_are_asked_for(tmp_path):
    write_images(tmp_path / "f", [f"{n}.png" for n in range(3)])
    for n, path in enumerate(sorted((tmp_path / "f").rglob("*.png"))):
        fields = {f"field {n} {k}": k for k in range(500)} | {"caption": "x" * n}
        path.with_suffix(".json").write_text(json.dumps({"score": n} | fields))
    source = FolderSource(str(tmp_path / "f"), "all")
    assert len(source.column_names) == 1002
    assert source.columns(["score"])["score"].tolist() == [0, 1, 2]
    assert source._table is None and list(source._columns) == ["score"]
    assert source.columns(["caption"])["caption"].tolist()[1:] == ["x", "xx"]
