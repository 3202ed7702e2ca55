"""Files that lie beside an image and say more about it, by key of the example.

Beside `x.jpg`:

- "caption": `x.txt`, one caption per line; of several, one is drawn in each epoch;
- "segmentation": `x.segmentation.png`, one channel, the class of each pixel;
- "depth": `x.depth.png`, one channel of any depth of bits;
- "boxes" and "box_labels": `x.json`, `[{"label": 3, "box": [ymin, xmin, ymax, xmax]}]`,
  boxes in [0, 1] from the upper left corner; a label may be a name;
- "mask": `x.mask.png`, one channel, bright where the picture is to be filled;
- "low_res": `x.low_res.png`, a small version of the same picture;
- any other key: `x.<key>.npy`, an array.

All maps are cropped and mirrored with the image, whatever their size.
"""

import io
import json
import os

import numpy as np

from ldm_jax.data.layout import parse_layout


def read_sidecar(path, key, names=None):
    """Reads what lies beside an image.

    Args:
      path: The image's path.
      key: Key of the example.
      names: Names of the classes of boxes, or None.

    Returns:
      str or list of str; encoded bytes of an image; or an array.

    Raises:
      ValueError: If the file is missing or wrong.
    """
    suffix, parse = SIDECARS.get(key, (f".{key}.npy", _array))
    path = os.path.splitext(path)[0] + suffix
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        raise ValueError(f"{os.path.basename(path)} is missing") from error
    try:
        return parse(data, names)
    except ValueError as error:
        raise ValueError(f"{os.path.basename(path)}: {error}") from error


def drop_sidecars(names):
    """Leaves out the images that belong to another image of the same folder.

    Args:
      names: File names of images in one folder.

    Returns:
      List of those that are no sidecars.
    """
    stems = {os.path.splitext(name)[0] for name in names}
    suffixes = [suffix for suffix, _ in SIDECARS.values() if suffix.endswith(".png")]

    def owned(name):
        return any(
            name.endswith(suffix) and name.removesuffix(suffix) in stems
            for suffix in suffixes
        )

    return [name for name in names if not owned(name)]


def _captions(data, names):
    lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    lines = [line for line in lines if line] or [""]
    return lines[0] if len(lines) == 1 else lines


def _image(data, names):
    return data


def _boxes(data, names):
    return parse_layout(json.loads(data), names)[0]


def _box_labels(data, names):
    return parse_layout(json.loads(data), names)[1]


def _array(data, names):
    return np.load(io.BytesIO(data), allow_pickle=False)


# Key -> what takes the place of the image's suffix, and what reads the bytes.
SIDECARS = {
    "caption": (".txt", _captions),
    "segmentation": (".segmentation.png", _image),
    "depth": (".depth.png", _image),
    "boxes": (".json", _boxes),
    "box_labels": (".json", _box_labels),
    "mask": (".mask.png", _image),
    "low_res": (".low_res.png", _image),
}
