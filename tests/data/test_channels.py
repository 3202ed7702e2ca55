"""Images of other channels, bits and ranges than those of RGB photos."""

import io
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from ldm_jax import build
from ldm_jax.data.crops import WHOLE
from ldm_jax.data.folder import FolderSource
from ldm_jax.data.load_batch import LoaderOptions
from ldm_jax.data.loader import Loader
from ldm_jax.data.sources import keep
from ldm_jax.data.tables import ParquetSource
from ldm_jax.data.tar import TarSource
from ldm_jax.data.transforms import cut_image, extent, transform
from ldm_jax.errors import ConfigError, DataError, DecodeError
from ldm_jax.images import (
    Pixels,
    decode_pixels,
    file_values,
    find_size,
    pixels_of,
    read_image,
    suffix_of,
    to_float,
    write_image,
)
from ldm_jax.images.header_sizes import size_in
from ldm_jax.metrics.reconstruction import l1, psnr
from tests.data.common import encode, make_image
from tests.data.tar_shards import add

GREY16 = Pixels("grey", "uint16")
FIVE = Pixels(5, value_range=(-200, 800))


def npy(array):
    with io.BytesIO() as file:
        np.save(file, array)
        return file.getvalue()


def deep(height=6, width=5):
    return (np.arange(height * width, dtype=np.uint16) * 2111).reshape(height, width)


def five(height=6, width=5):
    rng = np.random.default_rng(0)
    return rng.uniform(-200, 800, (height, width, 5)).astype(np.float32)


def test_types_of_a_batch_stand_for_the_same_range():
    for dtype in (np.uint8, np.uint16):
        values = np.arange(np.iinfo(dtype).max + 1).astype(dtype)
        floats = to_float(values)
        assert floats[0] == -1 and floats[-1] == 1
        pixels = Pixels("grey", np.dtype(dtype).name)
        np.testing.assert_array_equal(pixels.quantise(floats), values)
    floats = np.linspace(-1, 1, 9, dtype=np.float32)
    np.testing.assert_array_equal(to_float(floats), floats)


@pytest.mark.parametrize("suffix", ["PNG", "TIFF"])
def test_16_bits_arrive_whole(suffix):
    data = encode(Image.fromarray(deep()), suffix)
    example = transform({"image": data}, (6, 5), pixels=GREY16)
    assert example["image"].dtype == np.uint16
    np.testing.assert_array_equal(example["image"][..., 0], deep())


def test_16_bits_are_scaled_and_not_clipped_for_8():
    values = np.full((8, 8), 40000, np.uint16)
    for pixels in (Pixels(), Pixels("grey"), Pixels("rgba")):
        image = transform({"image": encode(values)}, 8, pixels=pixels)["image"]
        assert image.shape == (8, 8, pixels.count) and image.dtype == np.uint8
        assert (image[..., 0] == round(40000 / 257)).all()


def test_resizing_16_bits_agrees_with_8_and_keeps_more():
    small = make_image(24, 24)[..., :1]
    fine = transform({"image": small.astype(np.uint16) * 257}, 16, pixels=GREY16)
    coarse = transform({"image": small}, 16, pixels=Pixels("grey"))
    apart = to_float(fine["image"]) - to_float(coarse["image"])
    assert abs(apart).max() < 1.01 / 127.5
    assert len(np.unique(fine["image"])) > len(np.unique(coarse["image"]))


def test_value_range_is_a_window():
    pixels = Pixels("grey", "uint16", value_range=(0, 4095))
    data = encode(np.array([[0, 4095, 5000]], np.uint16))
    image = decode_pixels(data, pixels=pixels)
    np.testing.assert_allclose(image[0, :, 0], [-1, 1, 1], atol=1e-6)


def test_array_of_many_channels_is_cut_and_mirrored_like_an_image():
    example = transform({"image": npy(five())}, (6, 5), flip="always", pixels=FIVE)
    expected = (five()[:, ::-1] + 200) / 500 - 1
    np.testing.assert_allclose(example["image"], expected, atol=1e-6)
    assert example["image"].dtype == np.float32


def test_pages_of_tiff_are_channels(tmp_path):
    pages = [Image.fromarray(deep() + 7 * page) for page in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    pixels = Pixels("3", "uint16")
    image = read_image(tmp_path / "a.tif", pixels)
    expected = np.stack([deep() + 7 * page for page in range(3)], axis=-1)
    np.testing.assert_array_equal(image, expected)
    with pytest.raises(DecodeError, match="has 3 channels and data.channels=2"):
        read_image(tmp_path / "a.tif", Pixels(2, "uint16"))


@pytest.mark.parametrize(
    "mode, value, grey, rgba",
    [
        ("L", 100, 100, (100, 100, 100, 255)),
        ("LA", (100, 128), 177, (100, 100, 100, 128)),
        ("RGB", (255, 0, 0), 76, (255, 0, 0, 255)),
        ("RGBA", (255, 0, 0, 128), 165, (255, 0, 0, 128)),
        ("1", 1, 255, (255, 255, 255, 255)),
    ],
)
def test_kinds_are_converted_alike_in_8_bits_and_floats(mode, value, grey, rgba):
    data = encode(Image.new(mode, (4, 4), value))
    for kind, expected in (("grey", (grey,)), ("rgba", rgba)):
        image = transform({"image": data}, 4, pixels=Pixels(kind))["image"]
        np.testing.assert_allclose(image[0, 0], expected, atol=1)
        image = transform({"image": data}, 4, pixels=Pixels(kind, "float32"))["image"]
        wanted = to_float(np.array(expected, np.uint8))
        np.testing.assert_allclose(image[0, 0], wanted, atol=1.1 / 127.5)


def test_colours_of_what_is_transparent_do_not_bleed():
    image = np.zeros((8, 8, 4), np.uint8)
    image[:, :4] = (255, 255, 255, 255)
    image[:, 4:] = (255, 0, 0, 0)
    for pixels in (Pixels("rgba"), Pixels("rgba", "float32")):
        cut = transform({"image": image}, 3, pixels=pixels)["image"]
        seen = to_float(cut)[..., 3] > -0.9
        assert (to_float(cut)[seen][:, :3] > 0.97).all()


def test_mapping_to_rgb():
    def shown(pixels, values):
        return pixels.to_rgb(np.array(values, np.float32)).tolist()

    assert shown(Pixels("grey"), [0.5]) == [0.5] * 3
    assert shown(Pixels("rgba"), [-1, 0, 1, -1]) == [1, 1, 1]
    assert shown(Pixels("rgba"), [-1, 0, 1, 1]) == [-1, 0, 1]
    assert shown(Pixels(5), [0, 1, 2, 3, 4]) == [0, 1, 2]
    assert shown(Pixels(2), [0, 1]) == [0.5] * 3
    chosen = Pixels(5, rgb_channels=(4, 0, 1))
    assert shown(chosen, [0, 1, 2, 3, 4]) == [4, 0, 1]
    assert shown(Pixels(5, rgb_channels=(3,)), [0, 1, 2, 3, 4]) == [3] * 3
    assert shown(Pixels(5, rgb_channels=("mean",)), [0, 1, 2, 3, 4]) == [2] * 3


@pytest.mark.parametrize(
    "pixels, suffix",
    [
        (Pixels(), ".png"),
        (Pixels("grey"), ".png"),
        (Pixels("rgba"), ".png"),
        (GREY16, ".png"),
        (Pixels("grey", "uint16", (0, 4095)), ".png"),
        (Pixels("grey", "uint16", (-5, 4095)), ".npy"),
        (Pixels("grey", "uint8", (0.0, 1.0)), ".npy"),
        (Pixels("grey", "uint16", (0.0, 1.0)), ".npy"),
        (Pixels("rgb", "uint16"), ".npy"),
        (Pixels(5, "uint8"), ".npy"),
        (Pixels("grey", "float32"), ".npy"),
        (FIVE, ".npy"),
    ],
)
def test_samples_are_written_in_the_units_of_the_data(tmp_path, pixels, suffix):
    rng = np.random.default_rng(0)
    image = pixels.quantise(rng.uniform(-1, 1, (6, 5, pixels.count)))
    assert suffix_of(pixels) == suffix
    write_image(tmp_path / f"a{suffix}", image, pixels)
    found = read_image(tmp_path / f"a{suffix}", pixels)
    assert found.dtype == image.dtype and found.shape == image.shape
    low, high = pixels.value_range or (0, 65535)
    # One unit where units are written, else what a batch's own type tells apart.
    step = 1.01 / (high - low) if suffix == ".png" else 0.0
    step = max(step, 1.01 / 127.5) if pixels.dtype == np.uint8 else step
    step += 2e-5
    np.testing.assert_allclose(to_float(found), to_float(image), atol=step)
    values = file_values(found, pixels)
    if pixels.value_range and pixels.dtype.kind == "u" and suffix == ".png":
        np.testing.assert_array_equal(
            values, np.asarray(Image.open(tmp_path / "a.png"))[..., None]
        )


@pytest.mark.parametrize(
    "array, pixels, message",
    [
        (
            np.zeros((4, 4, 3), np.float32),
            FIVE,
            "has 3 channels .* set data.channels=3",
        ),
        (np.zeros((4, 4, 6), np.uint8), Pixels("grey"), "set data.channels=6"),
        (np.full((4, 4, 5), np.nan), FIVE, "nan at row 0, column 0, channel 0"),
        (np.zeros((4, 4, 5), np.float32), Pixels(5), "set data.value_range"),
        (np.zeros((4, 4, 5), np.int32), Pixels(5), "int32, whose range"),
        (np.zeros((4, 4, 5), object), FIVE, "not a NumPy array"),
        (np.zeros((1, 4, 4, 5), np.uint8), FIVE, r"\[height, width, channels\]"),
        (np.zeros(4, np.uint8), FIVE, r"got \[4\]"),
        (np.zeros((0, 4, 5), np.uint8), FIVE, "no pixels"),
        (np.full((4, 4, 5), "a"), FIVE, "an image is of numbers"),
    ],
)
def test_what_is_wrong_is_said(array, pixels, message):
    with pytest.raises(DecodeError, match=message):
        decode_pixels(npy(array), pixels=pixels)


def test_header_that_announces_more_than_memory_is_refused():
    data = npy(np.zeros((1, 1, 5), np.uint8))
    for shape in (b"(200000, 200000, 5), ", b"(2, 3, 5), "):
        lied = data.replace(b"(1, 1, 5), ", shape)
        with pytest.raises(DecodeError, match="not a NumPy array"):
            decode_pixels(lied, pixels=FIVE)


def test_size_of_an_array_is_in_its_header():
    data = npy(five())
    assert find_size(lambda at, n: data[at : at + n], len(data)) == (5, 6)
    assert extent(decode_pixels(data, pixels=FIVE)) == (5, 6)


def directory(fields, order="<", large=False, gap=0):
    """A TIFF with its directory behind `gap` bytes, and nothing else."""
    number, head = ("Q", b"+\0\x08\0\0\0") if large else ("I", b"*\0")
    head = (
        head
        if order == "<"
        else b"".join(head[k : k + 2][::-1] for k in range(0, len(head), 2))
    )
    head = (b"II" if order == "<" else b"MM") + head
    at = len(head) + struct.calcsize(f"={number}") + gap
    rows = [struct.pack(f"{order}{'Q' if large else 'H'}", len(fields))]
    for tag, value in fields.items():
        row = struct.pack(f"{order}HH{number}", tag, 3, 1)
        rows.append(
            row + struct.pack(f"{order}H", value).ljust(struct.calcsize(number), b"\0")
        )
    return head + struct.pack(order + number, at) + bytes(gap) + b"".join(rows)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("large", [False, True])
def test_size_of_a_tiff_that_pillow_does_not_know(order, large):
    """Also where it stands at the end of a large file, of which little is read."""
    fields = {254: 0, 256: 70, 257: 40, 258: 16, 277: 5}
    for turn, size in ((1, (70, 40)), (6, (40, 70))):
        data = directory(fields | {274: turn}, order, large, gap=10**6)
        asked = []

        def read(at, count, data=data, asked=asked):
            asked.append(count)
            return data[at : at + count]

        assert find_size(read, len(data)) == size == size_in(data)
        assert sum(asked) < 5000
    # Bytes of which nothing follows.
    for cut in (8, 30, len(data) - 25):
        with pytest.raises(DecodeError):
            find_size(lambda at, n, cut=cut: data[:cut][at : at + n], cut)


@pytest.mark.parametrize("turn", [1, 3, 6])
def test_size_of_a_tiff_is_that_of_its_pages(turn):
    pages = [Image.fromarray(deep(6, 5)) for _ in range(3)]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    with io.BytesIO() as file:
        pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:], exif=exif)
        data = file.getvalue()
    size = find_size(lambda at, n: data[at : at + n], len(data))
    assert size == extent(decode_pixels(data, pixels=Pixels(3, "uint16")))
    assert size == ((6, 5) if turn == 6 else (5, 6))


def test_sizes_of_arrays_and_tiff_in_every_source(tmp_path):
    """Buckets and filters go by them."""
    files = {"a.npy": npy(five(6, 9)), "b.npy": npy(np.asfortranarray(five(8, 7)))}
    expected = [[6, 9], [8, 7]]
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in files.items():
            add(archive, name, data)
    rows = pa.table({"image": pa.array(list(files.values()), pa.binary())})
    pq.write_table(rows, tmp_path / "a.parquet")
    for source in (
        FolderSource(str(folder), "all"),
        TarSource(str(tmp_path / "a.tar"), "all", image_key="npy"),
        ParquetSource(str(tmp_path / "a.parquet"), "all"),
    ):
        assert source.sizes().tolist() == expected
        assert source.columns(["width"])["width"].tolist() == [9, 7]
        chosen = keep(source, "height > 7")
        assert chosen.describe(0) == source.describe(1) and len(chosen) == 1
        image = decode_pixels(chosen[0]["image"], pixels=FIVE)
        assert extent(image) == (7, 8)


def test_folder_of_arrays(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.npy").write_bytes(npy(five()))
    (tmp_path / "d.npy").write_bytes(npy(five()[..., :3]))
    # An array that goes with an image is no image.
    (tmp_path / "a.clip.npy").write_bytes(npy(np.zeros(3)))
    section = dict(channels="5", value_range=(-200, 800))
    source = FolderSource(str(tmp_path), "all")
    assert len(source) == 4 and source.sizes().tolist() == [[6, 5]] * 4
    options = LoaderOptions(image_size=4, **section)
    loader = Loader(source, options, batch_size=4, train=False)
    batch = next(loader)
    loader.close()
    assert batch["image"].shape == (4, 4, 4, 5) and batch["image"].dtype == np.float32
    assert batch["mask"].tolist() == [True] * 3 + [False]
    (skipped,) = loader.skipped.items()
    assert skipped[0].endswith("d.npy") and "has 3 channels" in skipped[1]
    strict = LoaderOptions(image_size=4, on_error="raise", **section)
    with pytest.raises(DataError, match="d.npy: it has 3 channels"):
        next(Loader(source, strict, batch_size=4, train=False))
    (tmp_path / "e.png").write_bytes(encode(make_image(5, 6)))
    assert len(FolderSource(str(tmp_path), "all")) == 1


def test_deep_colour_is_read_with_the_extra_or_says_so():
    codecs = pytest.importorskip("imagecodecs")
    values = np.stack([deep(), deep() + 1, deep() + 2], axis=-1)
    image = read_image(codecs.png_encode(values), Pixels("rgb", "uint16"))
    np.testing.assert_array_equal(image, values)
    tifffile = pytest.importorskip("tifffile")
    with io.BytesIO() as file:
        options = dict(photometric="minisblack", planarconfig="contig")
        tifffile.imwrite(file, five(), **options)
        data = file.getvalue()
    np.testing.assert_allclose(file_values(read_image(data, FIVE), FIVE), five(), 1e-4)
    # Bands one after the other, turned: what Pillow does not read.
    bands = np.moveaxis(five(), -1, 0)
    options = dict(photometric="minisblack", planarconfig="separate")
    with io.BytesIO() as file:
        turn = [(274, "H", 1, 6, True)]
        tifffile.imwrite(file, bands, metadata=None, extratags=turn, **options)
        data = file.getvalue()
    example = transform({"image": data}, (5, 6), pixels=FIVE, with_size=True)
    turned = np.rot90(five(), -1)
    np.testing.assert_allclose(file_values(example["image"], FIVE), turned, 1e-4)
    assert find_size(lambda at, n: data[at : at + n], len(data)) == (6, 5)
    assert example["size_and_crop"][:2].tolist() == [5, 6]


def test_deep_colour_without_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "imagecodecs", None)
    # The header is all that is looked at.
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\4\0\0\0\4\x10\2\0\0\0"
    with pytest.raises(DecodeError, match=r"ldm-jax\[deep_images\]"):
        decode_pixels(header, pixels=Pixels("rgb", "uint16"))


@pytest.mark.parametrize(
    "section, message",
    [
        (dict(channels="blue"), "grey, rgb, rgba, or a number"),
        (dict(channels=0), "number of channels from 1"),
        (dict(pixel_type="float16"), "choose from uint8"),
        (dict(value_range=(1, 1)), "two numbers"),
        (dict(channels=5, rgb_channels=(0, 5, 1)), "from 0 to 4"),
        (dict(channels=5, rgb_channels=(0, 1)), "one or three"),
        (dict(channels="rgba", rgb_channels=(0, 1, 2)), "leave it out"),
    ],
)
def test_a_wrong_section_is_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        pixels_of(section)


def test_distances_are_over_all_channels_and_types():
    one = np.zeros((1, 2, 2, 5), np.float32)
    other = one.copy()
    other[..., 4] = 0.5
    # Peak to peak is 2.
    assert psnr(one, other)[0] == pytest.approx(10 * np.log10(4 / 0.05), abs=1e-3)
    assert l1(one, other)[0] == pytest.approx(0.1)
    deep_one = np.full((1, 2, 2, 1), 1000, np.uint16)
    off = np.sqrt((2 / 65535) ** 2)
    found = psnr(deep_one, deep_one + np.uint16(1))[0]
    assert found == pytest.approx(10 * np.log10(4 / off**2), abs=0.1)


def test_cut_at_full_size_changes_nothing():
    image = decode_pixels(npy(five()), pixels=FIVE)
    np.testing.assert_array_equal(cut_image(image, WHOLE, (6, 5), FIVE), image)


def test_first_stage_follows_the_channels():
    from configs import shapes_autoencoder

    config = shapes_autoencoder.get_config("tiny")
    assert build.with_image_channels(config) is config
    config.data.channels = "grey"
    followed = build.with_image_channels(config)
    assert followed.first_stage.image_channels == 1
    assert build.with_image_channels(followed) is followed
    followed.data.channels = "rgba"
    with pytest.raises(ConfigError, match="set data.channels=grey"):
        build.with_image_channels(followed)
