"""Reads prepared TensorFlow Datasets: any name, no TensorFlow, no download.

The files (features.json, dataset_info.json, shards) describe the data set completely,
so its own code is neither needed nor run. Image features stay encoded: `images/` reads
more modes than TFDS does.
"""

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm_jax.annotations import Int, Shaped
from ldm_jax.data.filters.surveys import survey, survey_sizes
from ldm_jax.data.filters.tables import make_table, with_sizes
from ldm_jax.data.modalities import MODALITIES, as_text, modality_of
from ldm_jax.data.records import NamedRecords, TFRecords
from ldm_jax.images import find_size
from ldm_jax.store import local_only, raise_if_silent


class TfdsSource:
    """Examples of one split of a prepared data set, by position; can be pickled.

    Attributes:
      num_classes: Number of classes of the label, or None.
      class_names: Their names, or None.
      skipped: List of (where, reason) of records whose metadata cannot be read.
    """

    def __init__(
        self,
        name: str,
        split: str,
        data_dir: str | os.PathLike | None = None,
        image_key: str | None = None,
        label_key: str | None = None,
        keys: Sequence[str] = (),
    ) -> None:
        """Opens a split.

        Args:
          name: TFDS name with config and version as needed: "shapes/64", "mnist",
            "coco_captions/2014:1.1.0".
          split: Split or part of one: "train", "train[:90%]", "train[100:200]".
          data_dir: Root of the TFDS data sets; None is TFDS's own default.
          image_key: Feature that holds the image; None takes "image", or else the only
            image feature.
          label_key: Feature that holds the class; None takes "label" if there is one,
            "" takes none.
          keys: Further features that examples should have; dots lead into nested ones
            ("objects.bbox"), and rows of MODALITIES list more names (`prepared`).

        Raises:
          ValueError: If the data set is not prepared, or has no such split or feature.
        """
        builder = _find(name, data_dir)
        features = builder.info.features
        self._name, self._split = builder.info.full_name, split
        images = _image_features(features)
        self._image_key = _choose_image(name, images, features, image_key)
        self._label_key = _choose_label(name, features, label_key)
        self._paths = {key: find_path(name, features, key) for key in keys}
        if self._label_key:
            self._paths["label"] = self._label_key
        self._records = _open_records(builder, split)
        self._files = builder.info.splits[split].file_instructions
        self._features = features
        self._sizes, self.skipped = None, []
        self._decoders = _keep_encoded(images)
        self.class_names, self.num_classes = _classes(features, self._label_key)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns {"image": encoded bytes or array, "label": int, further keys}."""
        raw = self._records[index]
        found = self._features.deserialize_example_np(raw, decoders=self._decoders)
        example = {"image": found[self._image_key]}
        for key, path in self._paths.items():
            value = found
            for part in path.split("."):
                value = value[part]
            example[key] = value
        return example

    def sizes(self) -> Int[np.ndarray, "N 2"]:
        """Reads the sizes of the images from all records, once.

        Returns:
          int32 [N, 2], (height, width) in pixels; zeros where an image is damaged.
        """
        if self._sizes is None:
            self._sizes = survey_sizes(len(self), self._size_of, self._name)
        return self._sizes

    def _size_of(self, index):
        image = self[index]["image"]
        if isinstance(image, bytes):
            return find_size(lambda at, n: image[at : at + n], len(image))
        return image.shape[1], image.shape[0]

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns: scalar features, "width" and "height"."""
        scalars = [key for key in self._features if _is_scalar(self._features[key])]
        return tuple(sorted({*scalars, "width", "height"}))

    def columns(self, names: Sequence[str]) -> dict[str, Shaped[np.ndarray, " N"]]:
        """Reads scalar features from all records.

        Args:
          names: Some of `column_names`.

        Returns:
          Name -> array [N] of float64, bool, or objects.
        """

        @functools.cache
        def others():
            what, count = f"metadata of {self._name}", len(self)
            table = make_table(survey(count, self._fields_of, what))
            return {name: table.column(name, count) for name in names}

        return with_sizes(self.sizes, lambda name: others()[name], names)

    def _fields_of(self, index):
        try:
            raw = self._records[index]
            found = self._features.deserialize_example_np(raw, decoders=self._decoders)
        # A damaged record may raise anything.
        except Exception as error:
            raise_if_silent(self.describe(index), error)
            self.skipped.append((self.describe(index), f"no metadata: {error}"))
            return None
        names = [name for name in self.column_names if name in found]
        return {name: as_text(np.asarray(found[name]).item()) for name in names}

    def fingerprint(self) -> str:
        """Identifies the prepared split.

        Returns:
          Hash of its name and of the names, sizes and parts of its files.
        """
        parts = [self._name]
        for part in self._files:
            name, size = os.path.basename(part.filename), os.path.getsize(part.filename)
            parts.append(f"{name} {size} {part.skip} {part.take}")
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    def describe(self, index: int) -> str:
        """Describes where an example is, for messages.

        Args:
          index: Its position.

        Returns:
          Names of the data set and the split, and the position.
        """
        return f"{self._name} {self._split} example {index}"


def _find(name, data_dir):
    """Returns a read-only builder made from the files of a prepared data set."""
    from tensorflow_datasets.core import read_only_builder, registered
    from tensorflow_datasets.core.constants import DATA_DIR

    if not name:
        raise ValueError("name is empty; give data.name, such as shapes/64")
    advice = "its files are read by position: copy them, or use tar or Parquet"
    root = local_only(data_dir or str(DATA_DIR), "data_dir", advice)
    try:
        return read_only_builder.builder_from_files(name, data_dir=str(root))
    except registered.DatasetNotFoundError:
        pass
    except Exception as error:
        text = " ".join(str(error).split())
        raise ValueError(f"cannot read {name} in {root}: {text}") from error
    there = _list_prepared(root)
    has = f"has {', '.join(there)}" if there else "has no prepared data sets"
    raise ValueError(f"{name} is not prepared: {root} {has}; {_advise(name, root)}")


def _advise(name, root):
    """How to prepare a data set that is missing."""
    match = re.fullmatch(r"shapes/(\d+)(_single)?.*", name)
    if match or name == "shapes":
        size, single = match.groups() if match else ("64", None)
        count = " --max_shapes 1" if single else ""
        return (
            f"prepare it with: python -m ldm_jax.data.shapes --data_dir {root} "
            f"--image_size {size}{count}"
        )
    return (
        f'give another data_dir or prepare it with: tfds.builder("{name}", '
        f'data_dir="{root}", file_format="array_record").download_and_prepare()'
    )


def _list_prepared(root, most=12):
    """Names of the data sets under `root`, without their versions."""
    names = set()
    for pattern in ("*/*/features.json", "*/*/*/features.json"):
        for path in root.glob(pattern):
            version = path.parent.name
            if re.fullmatch(r"\d+\.\d+\.\d+", version):
                names.add(path.parent.parent.relative_to(root).as_posix())
    names = sorted(names)
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return names[:most] + more


def _image_features(features):
    """Names of the top-level image features."""
    from tensorflow_datasets import features as kinds

    return [key for key in features if isinstance(features[key], kinds.Image)]


def _keep_encoded(images):
    from tensorflow_datasets import decode

    return {key: decode.SkipDecoding() for key in images}


def _choose_image(name, images, features, image_key):
    if image_key:
        _feature(name, features, image_key)
        return image_key
    if "image" in features or len(images) == 1:
        return "image" if "image" in features else images[0]
    raise ValueError(
        f"{name} has {len(images)} image features and none is called image; give "
        f"image_key, one of: {', '.join(images or features)}"
    )


def _choose_label(name, features, label_key):
    if label_key:
        _feature(name, features, label_key)
        return label_key
    return "label" if label_key is None and _is_class(features, "label") else None


def _is_class(features, key):
    """Whether a feature is one integer."""
    if key not in features:
        return False
    feature = features[key]
    return hasattr(feature, "np_dtype") and (
        tuple(feature.shape or ()) == () and feature.np_dtype.__name__.startswith("int")
    )


def find_path(name: str, features: Any, key: str) -> str:
    """Finds the feature of a key.

    Args:
      name: Name of the data set, for messages.
      features: Its features, nested.
      key: Key of an example in a row of MODALITIES, or a dotted path.

    Returns:
      Its dotted path.

    Raises:
      ValueError: If there is no such feature.
    """
    modality = modality_of(key)
    paths = MODALITIES[modality].prepared.get(key, (key,)) if modality else (key,)
    there = [path for path in paths if path.split(".")[0] in features]
    path = (there or paths)[0]
    _feature(name, features, path)
    return path


def _feature(name, features, path):
    """Looks up a feature by its dotted path."""
    feature = features
    for part in path.split("."):
        children = getattr(feature, "feature", feature)
        if part not in getattr(children, "keys", dict)():
            raise ValueError(
                f'{name} has no feature "{path}"; it has {", ".join(sorted(features))}'
            )
        feature = children[part]
    return feature


def _is_scalar(feature):
    """Whether a feature is a single number, bool or string."""
    return hasattr(feature, "np_dtype") and tuple(feature.shape or ()) == ()


def _classes(features, label_key):
    """Names and number of the classes, each None where unknown."""
    feature = features[label_key] if label_key else None
    count = getattr(feature, "num_classes", None)
    names = tuple(getattr(feature, "names", None) or ()) or None
    return names, count


def _open_records(builder, split):
    """Opens the raw records of a split, [N] of bytes."""
    from tensorflow_datasets import decode
    from tensorflow_datasets.core.file_adapters import FileFormat

    info = builder.info
    try:
        chosen = info.splits[split]
    except Exception as error:
        raise ValueError(
            f'{info.full_name} has no split "{split}"; it has '
            f"{', '.join(sorted(info.splits))}, and parts such as train[:90%]"
        ) from error
    if not chosen.num_examples:
        raise ValueError(f'split "{split}" of {info.full_name} is empty')
    parts = [(i.filename, i.skip, i.take) for i in chosen.file_instructions]
    if info.file_format == FileFormat.TFRECORD:
        return NamedRecords(TFRecords(parts), parts)
    if info.file_format == FileFormat.ARRAY_RECORD:
        raw = decode.DeserializeMethod.RAW_BYTES
        source = builder.as_data_source(split, deserialize_method=raw)
        return NamedRecords(source, parts)
    raise ValueError(
        f"{info.full_name} is stored as {info.file_format.value}; only array_record "
        "and tfrecord can be read"
    )
