"""Tar shards that are damaged, hostile, or change: counted and named, or an error."""

import json
import os
import struct
import tarfile
import time

import numpy as np
import pytest

from ldm_jax.data.loader import make_loader
from ldm_jax.data.open_source import open_source
from ldm_jax.data.tar import TarSource, index_store
from ldm_jax.data.tar import scan as tar_scan
from ldm_jax.data.tar.index_file import MEMBER
from ldm_jax.data.tar.members import Damaged, _parse_pax
from ldm_jax.data.tar.shards import find_shards
from ldm_jax.errors import ConfigError, DataError
from tests.data.tar_shards import add, members, write_shard, write_shards


@pytest.fixture
def shard(tmp_path):
    return write_shard(str(tmp_path / "a.tar"), range(6))


def opened(path, keys=("caption",), **options):
    """(a source, {what is left out: why})."""
    source = TarSource(str(path), "all", keys=keys, **options)
    return source, {where.rpartition("/")[2]: why for where, why in source.skipped}


def offset_of(path, name):
    with tarfile.open(path) as archive:
        return archive.getmember(name).offset


def overwrite(path, at, data):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def write(path, *rows):
    """Writes a tar file of (name, bytes or None, fields)."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data, fields in rows:
            add(archive, name, data, **fields)
    return str(path)


def whole(name, number=0):
    return [(f"{name}.{suffix}", data, {}) for suffix, data in members(number).items()]


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_a_truncated_shard_keeps_what_is_whole(shard, share):
    size = os.path.getsize(shard)
    os.truncate(shard, int(offset_of(shard, "000000005.cls") * share))
    source, left_out = opened(shard)
    assert 0 < len(source) < 6
    assert all(source[i]["caption"] == f"caption {i}" for i in range(len(source)))
    assert any("cut short" in why for why in left_out.values())
    assert os.path.getsize(shard) < size
    section = dict(source="tar", name=shard, on_error="raise")
    with pytest.raises(DataError, match="cut short.*repair or remove it"):
        open_source(section, "all")


def test_a_shard_that_was_never_closed(shard):
    with open(shard, "rb") as file:
        data = file.read()
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512
    os.truncate(shard, end)
    source, left_out = opened(shard)
    assert len(source) == 6 and "no end mark" in left_out["a.tar"]


def test_a_damaged_header_ends_a_shard(shard):
    overwrite(shard, offset_of(shard, "000000003.jpg") + 10, b"x")
    source, left_out = opened(shard)
    assert len(source) == 3 and "damaged at byte" in left_out["a.tar"]


def test_a_damaged_image_is_skipped_when_it_is_loaded(shard):
    overwrite(shard, offset_of(shard, "000000003.jpg") + 512, bytes(400))
    source, left_out = opened(shard)
    assert source.sizes()[3].tolist() == [0, 0] and not left_out
    section = dict(image_size=8)
    loader = make_loader(source, section, batch_size=3, seed=0, train=False)
    masks = [batch["mask"].tolist() for batch in loader]
    assert masks == [[True] * 3, [False, True, True]]
    assert [where.split()[-1] for where in loader.skipped] == ["000000003"]
    loader.close()


def test_members_that_lack_their_pair(tmp_path):
    rows = [row for n in range(5) for row in whole(str(n), n)]
    lost = ("1.txt", "2.jpg", "3.cls")
    path = write(tmp_path / "a.tar", *[row for row in rows if row[0] not in lost])
    source, left_out = opened(path)
    assert [source[i]["caption"] for i in range(2)] == ["caption 0", "caption 4"]
    assert left_out == {
        "a.tar key 1": "has no .txt",
        "a.tar key 2": "has no image",
        "a.tar key 3": "has no .cls",
    }
    # What is not asked for need not be there.
    assert len(opened(path, keys=(), label_key="")[0]) == 4


def test_a_second_member_of_a_name_is_left_out(tmp_path):
    path = write(tmp_path / "a.tar", *whole("k", 1), ("k.txt", b"other", {}))
    source, left_out = opened(path)
    assert (
        source[0]["caption"] == "caption 1"
        and "second member" in left_out["a.tar: k.txt"]
    )


def test_links_sparse_files_and_devices_are_not_read(tmp_path):
    path = write(
        tmp_path / "a.tar",
        *whole("k"),
        ("l.jpg", b"", dict(type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        ("h.jpg", b"", dict(type=tarfile.LNKTYPE, linkname="k.jpg")),
        ("p.jpg", b"", dict(type=tarfile.FIFOTYPE)),
        ("folder", b"", dict(type=tarfile.DIRTYPE)),
        ("README", b"text", {}),
        ("._k.jpg", b"shadow", {}),
    )
    source, left_out = opened(path)
    assert len(source) == 1
    assert {name.split()[-1] for name in left_out} == {
        "l.jpg",
        "h.jpg",
        "p.jpg",
        "README",
    }


def test_names_lead_nowhere(tmp_path):
    names = ("../../up", "/abs/olute", "a\nb\x1b[31m", "é\udcff")
    rows = [row for name in names for row in whole(name)]
    path = write(tmp_path / "a.tar", *rows)
    source, left_out = opened(path)
    assert len(source) == len(names) and not left_out
    for index in range(len(source)):
        assert source[index]["caption"] == "caption 0"
        assert source.describe(index).isprintable()


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\xff" * 11])
def test_huge_sizes_are_not_believed(shard, size):
    at = offset_of(shard, "000000002.txt")
    with open(shard, "rb") as file:
        file.seek(at)
        block = bytearray(file.read(512))
    block[124:136], block[148:156] = size, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    overwrite(shard, at, bytes(block))
    source, left_out = opened(shard)
    assert len(source) == 2 and "cut short" in left_out["a.tar"]


def test_sizes_beyond_what_octal_digits_hold(tmp_path):
    """GNU's binary sizes are read, as those of members beyond 8 GB are."""
    rows = whole("k")
    path = write(tmp_path / "a.tar", *rows)
    at = offset_of(path, "k.txt")
    with open(path, "rb") as file:
        file.seek(at)
        block = bytearray(file.read(512))
    block[124:136] = b"\x80" + len(rows[1][1]).to_bytes(11)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    overwrite(path, at, bytes(block))
    assert opened(path)[0][0]["caption"] == "caption 0"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a tar file: it has 0 bytes"),
        (b"x" * 2000, "not a tar file"),
        (b"\x1f\x8b" + b"x" * 2000, "compressed.*decompress it"),
        (bytes(10240), "empty"),
        (struct.pack("<Q", 2**63) * 600, "not a tar file"),
    ],
)
def test_what_is_no_tar_file_is_said(tmp_path, data, message):
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ConfigError, match=message) as error:
        open_source(dict(source="tar", name=str(tmp_path)), "all")
    assert "\n" not in str(error.value)


def test_one_bad_shard_does_not_spoil_the_others(tmp_path):
    folder = write_shards(tmp_path / "shards", shards=2)
    (tmp_path / "shards" / "00000.tar").write_bytes(b"x" * 700)
    source, left_out = opened(folder)
    assert len(source) == 10 and left_out == {"00000.tar": "not a tar file"}


def test_metadata_that_is_none(tmp_path):
    path = write(
        tmp_path / "a.tar",
        *[("0.jpg", members(0)["jpg"], {}), ("0.json", b"{", {})],
        *[("1.jpg", members(1)["jpg"], {}), ("1.json", b'{"caption": [1]}', {})],
        *[("2.jpg", members(2)["jpg"], {}), ("2.json", b'["caption"]', {})],
        *[("3.jpg", members(3)["jpg"], {}), ("3.json", b'{"caption": "x"}', {})],
    )
    source, left_out = opened(path)
    assert list(left_out) == ["a.tar: 0.json"]
    assert source[3]["caption"] == "x" and source.columns(["caption"])
    for index in (0, 2):
        with pytest.raises(ValueError, match="json"):
            source[index]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(name=""), "name is empty"),
        (dict(name="nowhere"), "nowhere: there is no such file; data.name names tar"),
        (dict(name="empty"), "no .tar files in .*empty"),
        (dict(name="b*.tar"), "no .tar files in"),
        (dict(name="{0..9999999}.tar"), "more than 1,000,000 shards"),
        (dict(name="nosuch://x/a.tar"), "cannot open nosuch|needs a library"),
        (dict(split="dev"), "the splits train, validation, test and all"),
        (dict(validation_fraction=0.0), "validation_fraction must be"),
        (dict(image_key="webp"), "no member of the shards ends in .webp; they end"),
        (dict(keys=("depth",)), 'no "depth": members end in .cls, .jpg, .json, .txt'),
        (dict(caption_field="captoin"), 'did you mean "caption"'),
        (dict(label_key="clas"), 'label_key="clas" is no field of .json'),
    ],
)
def test_errors_say_what_to_change(tmp_path, shard, options, message):
    (tmp_path / "empty").mkdir()
    section = dict(
        source="tar", name="a.tar", data_dir=str(tmp_path), keys=("caption",)
    )
    split = options.pop("split", "all")
    with pytest.raises(ConfigError, match=message) as error:
        open_source(section | options, split)
    assert "\n" not in str(error.value)


def test_labels_must_be_classes(tmp_path):
    path = write(
        tmp_path / "a.tar", *whole("k"), ("l.jpg", b"", {}), ("l.cls", b"-1", {})
    )
    assert opened(path, keys=())[0].class_names == ("-1", "0")
    path = write(tmp_path / "b.tar", ("l.jpg", b"", {}), ("l.json", b'{"y": 1.5}', {}))
    with pytest.raises(ValueError, match="a label is 1.5; labels are whole numbers"):
        opened(path, keys=(), label_key="y")


def test_an_index_older_than_its_shard_is_made_anew(shard, caplog):
    assert len(opened(shard)[0]) == 6
    write_shard(shard, range(8))
    assert len(opened(shard)[0]) == 8
    assert "a.tar.index is made again: " in caplog.text and "changed" in caplog.text


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_damaged_index_is_made_anew(shard, share, caplog):
    expected = opened(shard)[0].fingerprint()
    size = os.path.getsize(f"{shard}.index")
    os.truncate(f"{shard}.index", int(size * share))
    assert opened(shard)[0].fingerprint() == expected
    assert "a.tar.index is made again" in caplog.text


def test_a_hostile_index_is_no_traceback(shard):
    opened(shard)
    with open(f"{shard}.index", "rb") as file:
        data = bytearray(file.read())
    rng = np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(data)
        for at in rng.integers(16, len(data), 8):
            changed[at] = rng.integers(256)
        with open(f"{shard}.index", "wb") as file:
            file.write(changed)
        try:
            source = opened(shard)[0]
        except ValueError:
            continue
        for index in range(len(source)):
            try:
                source[index]
            # Any that the loader counts.
            except Exception as error:
                assert not isinstance(error, MemoryError), error


def test_an_index_goes_elsewhere_where_it_cannot_lie_beside(
    tmp_path, shard, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a.tar.index").mkdir()
    assert len(opened(shard)[0]) == 6
    assert len(list((tmp_path / "cache").rglob("a.tar.*.index"))) == 1
    own = tmp_path / "own"
    assert len(opened(shard, index_dir=str(own))[0]) == 6
    assert len(list(own.iterdir())) == 1


def test_processes_that_index_at_once_share_the_work(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "shards", shards=4, each=2)
    shards = find_shards(folder)
    scans, scan = [], index_store.scan

    def counting(read, total):
        # Another process has made all the others meanwhile.
        if not scans:
            scans.append(total)
            for shard in shards[1:]:
                index_store.make_index(shard, None)
        scans.append(total)
        return scan(read, total)

    monkeypatch.setattr(index_store, "scan", counting)
    for shard in shards:
        index_store.make_index(shard, None)
    assert len(scans) == 5
    assert len(opened(folder, keys=())[0]) == 8


# ---- Odd labels and metadata.


def classes(path, *labels):
    """Writes a shard of examples whose `.cls` are these."""
    rows = [(f"{n}.{s}", d, {}) for n, d in enumerate(labels) for s in ("jpg", "cls")]
    rows = [(name, b"x" if name.endswith("jpg") else d, f) for name, d, f in rows]
    return write(path, *rows)


@pytest.mark.parametrize("stray", [b"2000000000", b"4" * 400, b"2147483648"])
def test_a_stray_label_makes_no_classes(tmp_path, stray):
    path = classes(tmp_path / "a.tar", b"0", b"1", stray, b"7")
    source, left_out = opened(path, keys=())
    assert source.num_classes == 8 and len(source) == 3
    assert [source[i]["label"] for i in range(3)] == [0, 1, 7]
    (reason,) = left_out.values()
    assert "is none of the 8 classes" in reason and list(left_out) == ["a.tar key 2"]


def test_many_classes_of_few_examples_are_no_strays(tmp_path):
    path = classes(tmp_path / "a.tar", b"0", b"21840")
    assert opened(path, keys=())[0].num_classes == 21841


@pytest.mark.parametrize(
    "stray", [b"1e999", b"-1e999", b"1.5", b"-1", b"1" + b"0" * 400]
)
def test_a_stray_number_in_json_is_left_out(tmp_path, stray):
    rows = [(f"{n}.jpg", b"x", {}) for n in range(3)]
    rows += [(f"{n}.json", b'{"y": %d}' % n, {}) for n in range(2)]
    path = write(tmp_path / "a.tar", *rows, ("2.json", b'{"y": %s}' % stray, {}))
    source, left_out = opened(path, keys=(), label_key="y")
    assert source.num_classes == 2 and len(source) == 2
    assert list(left_out) == ["a.tar key 2"]


def test_labels_that_are_all_far_off_are_refused(tmp_path):
    path = classes(tmp_path / "a.tar", b"123456789", b"123456790")
    with pytest.raises(ValueError, match="a thousand times the number of different"):
        opened(path, keys=())


def test_other_labels_make_another_set(tmp_path):
    prints = set()
    for name, second in (("a.tar", b"1"), ("b.tar", b"2")):
        path = classes(tmp_path / name, b"0", second, b"1", b"2")
        prints.add(opened(path, keys=())[0].fingerprint())
        prints.add(opened(path, keys=(), label_key="")[0].fingerprint())
    # Without labels both are the same.
    assert len(prints) == 3


def test_keys_that_change_make_no_columns_without_end(tmp_path):
    rows = [("0.jpg", b"x", {})]
    for n in range(12):
        fields = {f"field {n} {k}": k for k in range(100)} | {"score": n}
        rows.append((f"{n}.json", json.dumps(fields).encode(), {}))
    source, left_out = opened(write(tmp_path / "a.tar", *rows), keys=())
    header = source._indexes[0].header
    assert len(header["columns"]) == len(header["fields"]) == 1000
    assert "more than 1,000 fields" in left_out["a.tar"]
    assert source.columns(["score"])["score"].tolist() == [0]


@pytest.mark.parametrize("field", ['".cls": 5', '"": {"cls": 5}'])
def test_a_field_is_not_taken_for_a_class(tmp_path, field):
    rows = ("0.jpg", b"x", {}), ("0.cls", b"1", {})
    path = write(tmp_path / "a.tar", *rows, ("0.json", b"{%s}" % field.encode(), {}))
    source, _ = opened(path, keys=())
    assert source.num_classes == 2 and source[0]["label"] == 1


def test_more_suffixes_than_an_index_holds_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_scan, "_MOST_SUFFIXES", 2)
    rows = [(f"photo.{n:06d}.jpg", b"x", {}) for n in range(5)]
    source, left_out = opened(
        write(tmp_path / "a.tar", *rows), keys=(), image_key="000000.jpg"
    )
    assert len(source) == 1
    assert "ends at the first dot" in left_out["a.tar"]
    assert len(left_out) == 1


def test_many_that_lack_the_same_are_counted(tmp_path):
    rows = [(f"{n:02d}.jpg", b"x", {}) for n in range(50)]
    path = write(tmp_path / "a.tar", *rows, ("49.txt", b"text", {}))
    source, left_out = opened(path)
    assert len(source) == 1 and len(left_out) == len(source.skipped) == 21
    assert left_out["a.tar key 19"] == left_out["a.tar: 29 more examples"]


def test_extended_headers_are_read_in_one_pass():
    line = b"9 a=abcd\n"
    began = time.process_time()
    assert _parse_pax(line * (2**20 // len(line)), 0) == {"a": "abcd"}
    assert time.process_time() - began < 2
    for wrong in (b"x a=b\n", b"99 a=b\n", b"0 a=b\n", b"6" * 30 + b" a=b", b"5 ab\n"):
        with pytest.raises(Damaged):
            _parse_pax(wrong, 0)


def test_an_index_nested_deeply_is_made_anew(shard):
    opened(shard)
    text = b"[" * 10**5
    text += b" " * (-(len(text) + 16) % 64)
    with open(f"{shard}.index", "wb") as file:
        file.write(struct.pack("<8sQ", b"LDM-TAR\n", len(text)) + text)
    assert len(opened(shard)[0]) == 6


def test_a_stale_index_beside_a_valid_one_needs_no_words(
    tmp_path, shard, monkeypatch, caplog
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened(shard)
    stale = (tmp_path / "a.tar.index").read_bytes()
    write_shard(shard, range(8))
    opened(shard)
    cache = index_store.places(find_shards(shard)[0], None)[1]
    os.makedirs(os.path.dirname(cache))
    os.rename(f"{shard}.index", cache)
    (tmp_path / "a.tar.index").write_bytes(stale)
    caplog.clear()
    assert len(opened(shard)[0]) == 8
    assert "made again" not in caplog.text


def test_keys_with_capitals_are_found(tmp_path):
    rows = ("x.jpg", b"x", {}), ("x.Long.txt", b"words", {})
    source, _ = opened(write(tmp_path / "a.tar", *rows), keys=("Long",))
    assert source[0]["Long"] == "words"


def test_sides_in_an_index_that_no_image_has_are_no_sizes(shard):
    source = opened(shard)[0]
    at, size = source._indexes[0]._arrays["members"][2], MEMBER.itemsize
    overwrite(f"{shard}.index", at + 16, b"\xff" * 4)
    assert size == 26 and opened(shard)[0].sizes()[0].tolist() == [0, 0]
