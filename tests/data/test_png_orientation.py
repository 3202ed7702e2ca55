"""PNG that are turned, by chunks before or behind their pixels."""

import io
import struct
from zlib import crc32

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from ldm_jax.data.folder import FolderSource
from ldm_jax.images import decode, find_size
from ldm_jax.images.decoding import orientation_of
from ldm_jax.images.header_sizes import size_in
from ldm_jax.images.png_orientation import orientation_of_png

XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation>'


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize(
    "said", ["exif", "xmp", "packed", "profile", "nothing", "damaged"]
)
def test_how_a_png_is_turned_is_read_without_its_pixels(said, behind, monkeypatch):
    """As Pillow says after decoding all, wherever the chunk stands."""
    exif, info = Image.Exif(), PngInfo()
    exif[ExifTags.Base.Orientation] = 6
    if said in ("xmp", "packed"):
        info.add_itxt("XML:com.adobe.xmp", XMP, zip=said == "packed")
    if said == "profile":
        text = exif.tobytes().hex()
        info.add_text("Raw profile type exif", f"\nexif\n{len(text) // 2}\n{text}")
    info.add_text("more", "of no use")
    options = {"exif": exif} if said in ("exif", "damaged") else {}
    with io.BytesIO() as file:
        pixels = np.arange(4096, dtype=np.uint8).reshape(64, 64)[:, :32]
        Image.fromarray(pixels).save(file, "PNG", pnginfo=info, **options)
        data = file.getvalue()
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append(data[at : at + 12 + length])
        at += 12 + length
    own = [c for c in chunks if c[4:8] in (b"eXIf", b"tEXt", b"iTXt")]
    if said == "damaged":
        own = [c[:8] + bytes(len(c) - 8) for c in own]
    head, *rest, end = [c for c in chunks if c[4:8] not in (b"eXIf", b"tEXt", b"iTXt")]
    order = [head, *rest, *own, end] if behind else [head, *own, *rest, end]
    data = data[:8] + b"".join(order)
    try:
        with Image.open(io.BytesIO(data)) as image:
            expected = orientation_of(image)
    except Exception:
        expected = 1
    assert expected == (1 if said in ("nothing", "damaged") else 6)
    load, sizes = PngImageFile.load, []

    def watched(image):
        sizes.append(image.size)
        return load(image)

    monkeypatch.setattr(PngImageFile, "load", watched)
    assert orientation_of_png(part_of(data), len(data)) == expected
    size = (64, 32) if expected == 6 else (32, 64)
    assert find_size(part_of(data), len(data)) == size_in(data) == size
    assert set(sizes) <= {(1, 1)}
    monkeypatch.undo()
    # Of what is damaged before them Pillow decodes no pixels.
    if behind or said != "damaged":
        assert decode(data).size == size


def part_of(data, asked=None):
    """Reads some of these bytes; notes how many."""

    def read(at, count):
        if asked is not None:
            asked.append(count)
        return data[at : at + count]

    return read


def png_of(sizes, *behind):
    """A PNG, 5 high and 3 wide, whose pixels are chunks of these sizes of zeros."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 3, 5, 8, 0, 0, 0, 0))]
    parts += [(b"IDAT", bytes(size)) for size in sizes]
    chunks = (chunk_of(*each) for each in (*parts, *behind, (b"IEND", b"")))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def chunk_of(kind, part):
    check = struct.pack(">I", crc32(kind + part))
    return struct.pack(">I", len(part)) + kind + part + check


def sideways():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")


def test_of_a_large_png_only_some_heads_are_read_for_its_size():
    for behind, size in (((), (3, 5)), ((sideways(),), (5, 3))):
        data, asked = png_of([8192] * 999 + [100], *behind), []
        assert find_size(part_of(data, asked), len(data)) == size
        assert sum(asked) < 5000 and len(asked) < 12


def test_chunks_of_any_sizes_are_passed_over():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.choice([0, 1, 7, 100, 8192], rng.integers(1, 20)).tolist()
        sizes = np.repeat(sizes, rng.integers(1, 5)).tolist()
        more = (b"tEXt", b"more\0" + bytes(int(rng.integers(0, 9000))))
        for behind, size in (((more, sideways(), more), (5, 3)), ((more,), (3, 5))):
            data = png_of(sizes, *behind)
            assert find_size(part_of(data), len(data)) == size_in(data) == size


def test_what_is_behind_the_first_of_several_images_does_not_turn_it():
    first, second = (Image.new("L", (3, 5), grey) for grey in (0, 9))
    with io.BytesIO() as file:
        first.save(file, "PNG", save_all=True, append_images=[second])
        data = file.getvalue()
    data = data[:-12] + chunk_of(*sideways()) + data[-12:]
    assert find_size(part_of(data), len(data)) == decode(data).size == (3, 5)


def test_two_orientations_lie_in_buckets_of_their_own(tmp_path):
    """Those of sizes as the pixels are decoded, wherever the file says so."""
    for name, turned in (("a", False), ("b", True)):
        with io.BytesIO() as file:
            Image.fromarray(np.zeros((16, 32), np.uint8)).save(file, "PNG")
            data = file.getvalue()
        data = data[:-12] + chunk_of(*sideways()) * turned + data[-12:]
        (tmp_path / f"{name}.png").write_bytes(data)
    assert FolderSource(str(tmp_path), "all").sizes().tolist() == [[16, 32], [32, 16]]
