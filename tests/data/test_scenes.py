"""Scenes are repeatable, and their image, maps, boxes and caption agree."""

import numpy as np
import pytest

from ldm_jax.data.shapes import captions, scenes
from ldm_jax.data.shapes.examples import draw_example

MANY = range(64)


@pytest.fixture(scope="module")
def examples():
    return [draw_example(0, "train", index, 64) for index in MANY]


def draw(index, size=64, seed=0, max_shapes=4):
    rng = np.random.default_rng([seed, index])
    kind = scenes.CLASS_NAMES[index % len(scenes.CLASS_NAMES)]
    scene = scenes.sample_scene(rng, kind, max_shapes)
    return scene, scenes.draw_scene(scene, size)


def test_example_depends_on_seed_split_and_index_alone(examples):
    again = draw_example(0, "train", 5, 64)
    for key, value in examples[5].items():
        np.testing.assert_array_equal(again[key], value)
    for other in [(1, "train", 5), (0, "validation", 5), (0, "train", 13)]:
        assert np.any(draw_example(*other, 64)["image"] != again["image"])


def test_shapes_and_ranges(examples):
    for example in examples:
        assert example["image"].shape == (64, 64, 3)
        for key in ("segmentation", "depth"):
            assert example[key].shape == (64, 64) and example[key].dtype == np.uint8
        assert example["image"].dtype == np.uint8 and np.ptp(example["image"]) > 60
        assert 0 <= example["label"] < len(scenes.CLASS_NAMES)
        boxes = example["boxes"]
        assert 1 <= len(boxes) <= 4 and boxes.dtype == np.float32
        assert boxes.min() >= 0 and boxes.max() <= 1
        assert np.all(boxes[:, 2:] > boxes[:, :2])


def test_classes_are_balanced_and_sizes_vary(examples):
    counts = np.bincount([example["label"] for example in examples])
    assert len(counts) == len(scenes.CLASS_NAMES) and len(set(counts)) == 1
    assert {len(example["boxes"]) for example in examples} == {1, 2, 3, 4}


def test_segmentation_holds_the_classes_of_the_boxes(examples):
    for example in examples:
        present = set(np.unique(example["segmentation"])) - {0}
        assert present == {label + 1 for label in example["box_labels"]}
        assert example["box_labels"][0] == example["label"]


def test_boxes_enclose_their_shapes(examples):
    # Kinds differ within a scene, so that the pixels of a class are those of a shape.
    for example in examples:
        for box, label in zip(example["boxes"], example["box_labels"], strict=True):
            rows, columns = np.nonzero(example["segmentation"] == label + 1)
            edges = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
            np.testing.assert_allclose(box, np.array(edges) / 64, atol=1e-6)


def test_main_shape_is_large_near_the_middle_and_in_front(examples):
    for example in examples:
        boxes, depth = example["boxes"], example["depth"]
        sizes = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
        assert 0.42 <= sizes[0] <= 0.8
        assert np.all(sizes[1:] < 0.65 * sizes[0])
        middle = (boxes[0, :2] + boxes[0, 2:]) / 2
        assert np.all(np.abs(middle - 0.5) < 0.2)
        main = example["segmentation"] == example["label"] + 1
        assert depth[main].max() < depth[~main].min()


def test_depth_is_far_on_the_ground_and_near_on_shapes(examples):
    for example in examples:
        ground = example["segmentation"] == 0
        assert np.all(example["depth"][ground] == 255)
        assert np.all(example["depth"][~ground] < 255)


def test_nearer_shapes_hide_farther_ones():
    for index in MANY:
        scene, drawing = draw(index)
        depths = [shape.depth for shape in drawing.visible]
        assert depths == sorted(depths)
        assert drawing.visible[0] == scene.shapes[0] and drawing.hidden[0] == 0


def test_main_shape_stands_out_from_the_ground(examples):
    for example in examples:
        image = example["image"].astype(float)
        main = example["segmentation"] == example["label"] + 1
        ground = example["segmentation"] == 0
        difference = image[main].mean(axis=0) - image[ground].mean(axis=0)
        assert np.abs(difference).max() > 40


def test_caption_names_every_shape_in_its_color():
    for index in MANY:
        example = draw_example(0, "train", index, 64)
        caption = example["caption"]
        kinds = [scenes.CLASS_NAMES[label] for label in example["box_labels"]]
        assert caption.split(" on ")[0].startswith(("a large", "a huge"))
        for kind in scenes.CLASS_NAMES:
            assert (f" {kind} " in caption) == (kind in kinds)
        first = min(kinds, key=lambda kind: caption.index(f" {kind} "))
        assert first == kinds[0]


def test_caption_tells_the_color_that_is_seen():
    for index in MANY:
        scene, drawing = draw(index)
        main = scene.shapes[0]
        example_image = drawing.image.astype(float)
        mask = drawing.segmentation == scenes.CLASS_NAMES.index(main.kind) + 1
        seen = example_image[mask].mean(axis=0)
        errors = {
            name: np.linalg.norm(scenes._lab(rgb) - scenes._lab(seen))
            for name, rgb in scenes.COLORS.items()
        }
        assert main.color in sorted(errors, key=errors.get)[:2]


def test_captions_are_read_as_they_were_meant():
    for index in MANY:
        scene, drawing = draw(index)
        said = captions.read(captions.describe(scene, drawing))
        shapes_said = [(shape.color, shape.kind) for shape in drawing.visible]
        assert sorted(said.shapes) == sorted(shapes_said)
        assert said.shapes[0] == shapes_said[0]
        assert (said.pattern, said.grounds) == scene.ground[:2]


def test_other_sentences_are_no_captions():
    with pytest.raises(ValueError, match="is not a caption of the data set"):
        captions.read("a virus monster is playing guitar, oil on canvas")


def test_places_in_the_caption_are_those_of_the_boxes(examples):
    seen = 0
    for example in examples:
        caption = example["caption"]
        pairs = zip(example["boxes"], example["box_labels"], strict=True)
        for box, label in list(pairs)[1:]:
            rest = caption.split(f" {scenes.CLASS_NAMES[label]} ", 1)[1]
            place = " ".join(rest.replace(",", " ,").split()[:4])
            x, y = (box[1] + box[3]) / 2, (box[0] + box[2]) / 2
            if "left" in place.split(" , ")[0]:
                assert x < 0.5
                seen += 1
            if place.startswith("at the top"):
                assert y < 0.5
    assert seen > 10


def test_the_same_scene_at_any_resolution():
    for index in range(12):
        _, small = draw(index, 32)
        _, large = draw(index, 128)
        shrunk = large.image.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
        assert np.abs(shrunk - small.image).mean() < 6


def test_single_shapes():
    for index in MANY:
        assert len(draw(index, max_shapes=1)[1].visible) == 1


def test_every_pattern_and_kind_appears():
    drawn = [draw(index)[0] for index in range(200)]
    assert {s.ground.pattern for s in drawn} == set(scenes.drawing.PATTERNS)
    assert {s.shapes[0].color for s in drawn} == set(scenes.COLORS)


def test_edges_are_soft():
    # A white circle on dark ground has pixels of many brightnesses along its rim.
    scene, drawing = draw(0, max_shapes=1)
    rows, columns = np.nonzero(drawing.segmentation)
    rim = drawing.image[rows.min() - 1 : rows.min() + 3, columns.min() : columns.max()]
    assert len(np.unique(rim.sum(axis=-1))) > 20
