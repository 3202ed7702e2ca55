"""The TensorFlow Datasets builder `shapes`; `prepare.py` runs it.

Reading a prepared copy needs no builder: `tfds.data_source("shapes/64")` and this
package's `tfds` source only need its files.
"""

import dataclasses
import io

import tensorflow_datasets as tfds
import tqdm
from PIL import Image

from ldm_jax.data.shapes import examples
from ldm_jax.data.shapes.scenes import CLASS_NAMES

DESCRIPTION = """\
Scenes of one to four shaded, anti-aliased shapes on varied grounds, drawn by a program.
Every example has an image, the class of its main shape, a caption in plain English,
a class per pixel, the box and class of every shape, and a depth map.
"""


@dataclasses.dataclass(eq=False, kw_only=True)
class ShapesConfig(tfds.core.BuilderConfig):
    """Size and content of a copy of the data set.

    Attributes:
      image_size: Side of the images in pixels.
      num_train: Number of training examples.
      num_validation: Number of validation examples.
      max_shapes: Largest number of shapes in a scene.
      seed: Seed of the scenes.
    """

    image_size: int
    num_train: int
    num_validation: int
    max_shapes: int
    seed: int


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Draws the scenes and writes them.

    Configs are made on demand (`Shapes(config=ShapesConfig(...))`), as any size is
    possible; a prepared one is found by its name.
    """

    name = "shapes"
    VERSION = tfds.core.Version(examples.VERSION)
    RELEASE_NOTES = {examples.VERSION: "First release."}

    def _info(self):
        size = self.builder_config.image_size
        labels = tfds.features.ClassLabel(names=CLASS_NAMES)
        plane = tfds.features.Image(shape=(size, size, 1), encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            description=DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(size, size, 3), encoding_format="png"
                    ),
                    "label": labels,
                    "caption": tfds.features.Text(),
                    "segmentation": plane,
                    "depth": plane,
                    "objects": tfds.features.Sequence(
                        {"bbox": tfds.features.BBoxFeature(), "label": labels}
                    ),
                }
            ),
            supervised_keys=("image", "label"),
            metadata=tfds.core.MetadataDict(examples.metadata(self.builder_config)),
            # Example i of a split on disk is example i of `examples.draw_example`.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        config = self.builder_config
        counts = {"train": config.num_train, "validation": config.num_validation}
        return {
            split: self._generate_examples(split, count)
            for split, count in counts.items()
            if count
        }

    def _generate_examples(self, split, count):
        config = self.builder_config
        # A progress bar in a terminal, nothing in a log.
        for index in tqdm.tqdm(range(count), split, leave=False, disable=None):
            example = examples.draw_example(
                config.seed, split, index, config.image_size, config.max_shapes
            )
            yield index, _encode(example)


def _encode(example):
    """Encodes an example's images as PNG, which features.Image does with TensorFlow."""
    boxes = [tfds.features.BBox(*map(float, box)) for box in example["boxes"]]
    return {
        "image": _png(example["image"]),
        "label": example["label"],
        "caption": example["caption"],
        "segmentation": _png(example["segmentation"]),
        "depth": _png(example["depth"]),
        "objects": [
            {"bbox": box, "label": int(label)}
            for box, label in zip(boxes, example["box_labels"], strict=True)
        ],
    }


def _png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="png", compress_level=3)
    return buffer.getvalue()
