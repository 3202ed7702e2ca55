"""Writes tar shards as WebDataset's writer and img2dataset lay them out."""

import io
import json
import tarfile

import numpy as np

from tests.data.common import encode, make_image


def add(archive, name, data, **fields):
    """Adds a member to an open archive."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data))


def metadata(number):
    """The `.json` of an example, with what img2dataset writes and more."""
    return {
        "caption": f"caption {number}",
        "url": f"https://example.org/{number}.jpg",
        "key": f"{number:09d}",
        "status": "success",
        "error_message": None,
        "width": 24 + number % 7,
        "height": 16 + number % 5,
        "aesthetic": number / 4,
        "language": ("en", "de", None)[number % 3],
        "watermark": number % 4 == 0,
    }


def members(number):
    """Suffix -> bytes of an example."""
    fields = metadata(number)
    image = make_image(fields["width"], fields["height"], number)
    return {
        "jpg": encode(image, "JPEG"),
        "txt": fields["caption"].encode(),
        "json": json.dumps(fields).encode(),
        "cls": str(number % 3).encode(),
    }


def write_shard(path, numbers, format=tarfile.PAX_FORMAT, only=None, **more):
    """Writes a shard of the examples of some numbers.

    Args:
      path: Where to, or an open file.
      numbers: Numbers of the examples.
      format: Format of `tarfile`.
      only: Suffixes to write; all by default.
      **more: Function of a number that gives the bytes of a further member, by suffix
        with "_" for ".".
    """
    opened = dict(name=path) if isinstance(path, str) else dict(fileobj=path)
    with tarfile.open(mode="w", format=format, **opened) as archive:
        for number in numbers:
            found = members(number)
            found |= {k.replace("_", "."): make(number) for k, make in more.items()}
            for suffix in only or found:
                add(archive, f"{number:09d}.{suffix}", found[suffix])
    return str(path)


def write_shards(folder, shards=3, each=10, **options):
    """Writes shards 00000.tar, ... of examples that are counted through."""
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        numbers = range(shard * each, (shard + 1) * each)
        write_shard(str(folder / f"{shard:05d}.tar"), numbers, **options)
    return str(folder)


def array(number):
    """Bytes of a `.npy` file."""
    file = io.BytesIO()
    np.save(file, np.full(3, number, np.float32))
    return file.getvalue()
