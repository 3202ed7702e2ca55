"""Flags: which go together, what is missing, what is superfluous."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from ldm_jax.console import warn_once
from ldm_jax.data.labels import name_of_class
from ldm_jax.errors import ConfigError
from ldm_jax.sampling.conditions import make_batch
from ldm_jax.sampling.flag_values import read_flags
from ldm_jax.sampling.options import complete, parse_interval, parse_pair, parse_scale
from ldm_jax.sampling.task import make_task, warn_of_cut, warn_of_turns
from tests.sampling.common import make_trained, options_of, picture, write_image

MODELS = {
    "none": (),
    "class": ("label",),
    "text": ("caption",),
    "layout": ("boxes",),
    "small": ("low_res",),
    "fill": ("masked_image",),
    "maps": ("segmentation", "depth"),
    "style": ("caption", "style"),
    "vector": ("embedding",),
    "sizes": ("micro",),
}


@pytest.fixture(scope="module")
def models():
    """Models by name; only their config matters here."""
    return {name: make_trained(*keys, scale=0) for name, keys in MODELS.items()}


def test_the_label_of_no_class_is_one_that_may_be_given():
    model = make_trained("label", scale=0)
    assert make_task(model, {"labels": ["star"]}, *options_of(model))
    for wrong in ("-1", "255", "-2"):
        with pytest.raises(ConfigError, match=f"no class '{wrong}'"):
            make_task(model, {"labels": [wrong]}, *options_of(model))
    for ignored in (-1, 255, 2):
        old = model.model.conditioner
        label = {**old.entries["label"], "ignore_label": ignored}
        new = old.clone(entries={**old.entries, "label": label})
        other = model._replace(model=dataclasses.replace(model.model, conditioner=new))
        task = make_task(other, {"labels": [str(ignored), "0"]}, *options_of(other))
        assert task.values["label"].values == (ignored, 0)
        with pytest.raises(ConfigError, match="no class '-2'"):
            make_task(other, {"labels": ["-2"]}, *options_of(other))
    assert [name_of_class(k, ("a", "b")) for k in (-1, 1, 2)] == ["-1", "b", "2"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file for each flag."""
    folder = tmp_path_factory.mktemp("files")
    found = {
        name: write_image(folder / f"{name}.png", picture())
        for name in ("image", "style", "low_res")
    }
    plane = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found["mask"] = write_image(folder / "mask.png", plane)
    found["segmentation"] = write_image(folder / "segmentation.png", plane // 32)
    found["depth"] = write_image(folder / "depth.png", plane)
    found["prompt"], found["labels"] = "a red star", "star"
    found["original_size"], found["crop"] = "480x640", "0,8"
    found["layout"] = str(folder / "layout.json")
    layout = [{"label": "star", "box": [0.1, 0.2, 0.5, 0.9]}]
    (folder / "layout.json").write_text(json.dumps(layout))
    found["features"] = str(folder / "features.npy")
    np.save(folder / "features.npy", np.zeros((2, 4), np.float32))
    return found


def ask(model, files, flags, **options):
    given = {flag: [files[flag]] for flag in flags}
    return make_task(model, given, *options_of(model, **options))


@pytest.mark.parametrize(
    "name, flags, options, message",
    [
        (
            "text",
            (),
            {},
            "on caption: give --prompt (or --prompts_file), or --from_data",
        ),
        ("layout", (), {}, "conditioned on boxes: give --layout, or --from_data"),
        (
            "small",
            (),
            {},
            "on low_res: give --low_res or --image, or --from_data",
        ),
        ("fill", (), {}, "give --image and --mask, or --from_data"),
        ("fill", ("image",), {}, "--image needs --mask for this model"),
        ("fill", ("mask",), {}, "--mask needs --image for this model"),
        ("maps", ("depth",), {}, "conditioned on segmentation: give --segmentation"),
        ("style", ("prompt",), {}, "conditioned on style: give --style or --image"),
        ("vector", (), {}, "conditioned on embedding: give --features"),
        (
            "class",
            ("prompt",),
            {},
            "--prompt (or --prompts_file) is not a condition of this",
        ),
        (
            "class",
            ("prompt",),
            {},
            "its conditions take --labels (or --labels_file)",
        ),
        ("none", ("labels",), {}, "take no flag, it was trained without"),
        ("class", ("mask",), {}, "--mask needs an image to work on: give --image"),
        ("class", (), {"strength": 0.5}, "--strength=0.5 needs an image"),
        ("class", (), {"invert": True}, "--invert needs an image"),
        (
            "class",
            ("image",),
            {},
            "--image is not a condition of this model beyond",
        ),
        ("small", ("low_res", "image"), {}, "--image is not a condition of this model"),
        ("class", ("image",), {"strength": 0.5, "invert": True}, "leave one out"),
        ("none", (), {"size": (18, 17)}, "--width=17 is not a multiple of 2"),
        ("none", (), {"size": (0, 16)}, "use --height=2"),
        ("none", (), {"interpolate": (0, 1), "num_samples": 1}, "--num_samples=2"),
    ],
)
def test_wrong_combinations_name_the_flags(
    name, flags, options, message, models, files
):
    with pytest.raises(ConfigError) as error:
        ask(models[name], files, flags, **options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "name, flags, options",
    [
        ("none", (), {}),
        ("none", ("image",), {"strength": 0.0}),
        ("none", ("image", "mask"), {"strength": 0.5}),
        ("none", ("image",), {"invert": True, "interpolate": (0, 1)}),
        ("text", ("prompt",), {}),
        ("text", ("prompt", "image"), {"strength": 1.0}),
        ("small", ("low_res",), {}),
        ("small", ("image",), {}),
        ("small", ("low_res", "image"), {"strength": 0.5}),
        ("fill", ("image", "mask"), {}),
        ("maps", ("segmentation", "depth"), {}),
        ("style", ("prompt", "style"), {}),
        ("style", ("prompt", "image"), {}),
        ("vector", ("features",), {}),
        ("sizes", (), {}),
        ("sizes", ("original_size", "crop"), {"size": (16, 32)}),
    ],
)
def test_right_combinations_make_a_batch(name, flags, options, models, files):
    task = ask(models[name], files, flags, **options)
    batch = make_batch(models[name], task, 0, [0, 1])
    assert batch["inputs"].keys() == set(MODELS[name])
    assert all(len(value) == 2 for value in batch["inputs"].values())
    assert ("mask" in batch) == ("mask" in flags)


def test_sample_k_takes_input_k_in_turn(models, tmp_path):
    for k in (2, 0, 1):
        write_image(tmp_path / "pictures" / f"{k}.png", picture(k))
    lines = tmp_path / "prompts.txt"
    lines.write_text("a blue ring\r\na huge\u2028heart\x85\n")
    given = {
        "prompt": ["a red star"],
        "prompts_file": [str(lines)],
        "style": [str(tmp_path / "pictures")],
    }
    model = models["style"]
    given = given | {"style": [*given["style"]] * 6}
    task = make_task(model, given, *options_of(model))
    assert task.count == 18  # One for each of the pictures.
    made = make_batch(model, task, 0, range(7))["inputs"]
    for k in range(7):
        np.testing.assert_array_equal(made["style"][k], picture(k % 3))
    tokens = model.inputs["caption"].tokenizer(["a red star", "a blue ring"])
    np.testing.assert_array_equal(made["caption"][[0, 4]], tokens)


def test_samples_are_told_sizes_and_crops_that_flags_say(models, files):
    model, flags = models["sizes"], ("original_size", "crop")
    whole = [16, 32, 0, 0, 16, 32]
    for given, changed in (
        ((), whole),
        (flags[:1], [480, 640, 0, 0, 16, 32]),
        (flags[1:], [16, 32, 0, 8, 16, 32]),
        (flags, [480, 640, 0, 8, 16, 32]),
    ):
        task = ask(model, files, given, size=(16, 32))
        made = make_batch(model, task, 0, [0])["inputs"]["micro"]
        assert made.tolist() == [changed] and made.dtype == np.float32
    for flag, wrong in (
        *(("original_size", text) for text in ("9", "0x9", "axb", "1x2x3", "-1x4")),
        *(("crop", text) for text in ("9", "-1,9", "a,b", "1,2,3", "1,99999")),
    ):
        with pytest.raises(ConfigError, match=f"--{flag}={wrong}: give "):
            make_task(model, {flag: [wrong]}, *options_of(model))
    with pytest.raises(ConfigError, match="--crop is not a condition of this model"):
        make_task(models["class"], {"crop": ["0,0"]}, *options_of(models["class"]))


def test_classes_come_one_per_line_and_a_long_list_is_recorded_by_its_hash(
    models, tmp_path
):
    path, model = tmp_path / "labels.txt", models["class"]
    path.write_text("star\n 1 \n\n")
    given = {"labels": ["heart"], "labels_file": [str(path)]}
    task = make_task(model, given, *options_of(model))
    names = model.class_names
    labels = [names.index("heart"), names.index("star"), 1]
    assert list(task.values["label"].values) == labels == task.record["labels"]
    path.write_text("star\n" * 5000)
    task = make_task(model, {"labels_file": [str(path)]}, *options_of(model))
    assert task.count == task.record["labels"]["values"] == 5000
    for text, message in (
        ("\n", "holds no class"),
        ("1\n\nhart\n\n", "labels.txt, line 2: there is no class ''"),
        ("1\n2\nhart\n", "labels.txt, line 3: there is no class 'hart'"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=f"--labels_file.*{message}"):
            make_task(model, {"labels_file": [str(path)]}, *options_of(model))


@pytest.mark.parametrize(
    "count, said",
    [
        (None, ""),
        (6, ""),
        (10, "labels_file: 3 conditions for 10 samples, which take them in turn"),
        (2, "labels_file: 3 conditions for 2 samples: those after the first 2 are"),
    ],
)
def test_a_file_of_other_lines_than_samples_is_named(
    models, tmp_path, caplog, count, said
):
    """It may have been cut."""
    path, model = tmp_path / "labels.txt", models["class"]
    path.write_text("star\n1\n2\n")
    given = {"labels_file": [str(path)]}
    warn_of_turns(make_task(model, given, *options_of(model, num_samples=count or 3)))
    given = {"labels": ["1", "2", "3"]}
    warn_of_turns(make_task(model, given, *options_of(model, num_samples=10)))
    assert said in caplog.text and bool(said) == bool(caplog.text)


def test_prompts_that_lose_their_end_are_named(models, caplog):
    model, long = models["text"], "a blue star " * 9
    warn_once.cache_clear()
    given = {"prompt": ["a star", long, long], "negative_prompt": ["a star"]}
    options = options_of(model, num_samples=2)
    warn_of_cut(model, make_task(model, given, *options))
    said = f"--prompt.*: 1 of 2 have more tokens than .* begins '{long[:60]}'"
    assert re.search(said, caplog.text) and "negative" not in caplog.text
    caplog.clear()
    given = {"prompt": ["a star"], "negative_prompt": [long]}
    warn_of_cut(model, make_task(model, given, *options))
    assert "--negative_prompt: 1 of 1 have" in caplog.text
    caplog.clear()
    warn_of_cut(model, make_task(model, {"prompt": ["a star"]}, *options))
    assert not caplog.text


def test_a_blank_line_is_an_empty_prompt(tmp_path):
    folder = tmp_path / "captions"
    folder.mkdir()
    for name, text in (("0", "a star\n\na ring"), ("1", ""), ("2", "a heart\n\n\n")):
        (folder / f"{name}.txt").write_text(text)
    found = read_flags({"prompts_file": str(folder)})["caption"]
    assert found.values == ("a star", "", "a ring", "a heart", "", "")
    path = folder / "0.txt"
    path.write_text("a star\n\na ring\n\n\n")
    found = read_flags({"prompts_file": str(path)})["caption"]
    assert found.values == ("a star", "", "a ring", "", "")


def test_of_captions_beside_an_image_the_first_is_taken(tmp_path):
    for name, text in (("0", "\na star\na ring"), ("1", ""), ("2", "a heart\n")):
        (tmp_path / f"{name}.txt").write_text(text)
        write_image(tmp_path / f"{name}.png", picture())
    found = read_flags({"prompts_file": str(tmp_path)})["caption"]
    assert found.values == ("a star", "", "a heart")


def test_settings_know_contents_not_names(models, tmp_path):
    def record(seed, name):
        path = write_image(tmp_path / name, picture(seed))
        model = models["small"]
        return make_task(model, {"low_res": [path]}, *options_of(model)).record

    assert record(0, "a.png") == record(0, "b.png") != record(1, "a.png")


@pytest.mark.parametrize(
    "flag, content, message",
    [
        ("image", None, "--image: there is no file or folder"),
        ("image", b"no image", "--image: cannot read"),
        ("mask", np.zeros((16, 16), np.uint8), "leaves nothing to fill"),
        ("mask", np.full((16, 32), 255, np.uint8), "give both the same proportions"),
        ("segmentation", picture(), "expected one channel"),
        ("segmentation", np.full((16, 16), 200, np.uint8), "label 200 is out of range"),
        ("layout", b"{}", "a layout is a list of objects"),
        ("layout", b'[{"label": "cat", "box": [0, 0, 1, 1]}]', "choose from circle"),
        ("features", b"none", "is not a NumPy array"),
        ("prompts_file", b"\n", "holds no prompt"),
        ("prompts_file", b"a\n\na caf\xe9\n", "line 3 is not UTF-8"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    flag, content, message, models, files, tmp_path
):
    path = tmp_path / "file.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        write_image(path, content)
    used = {
        "image": ("fill", ("mask",)),
        "mask": ("fill", ("image",)),
        "segmentation": ("maps", ("depth",)),
        "layout": ("layout", ()),
        "features": ("vector", ()),
        "prompts_file": ("text", ()),
    }
    name, others = used[flag]
    given = {flag: [str(path)]} | {other: [files[other]] for other in others}
    with pytest.raises(ConfigError) as error:
        task = make_task(models[name], given, *options_of(models[name]))
        make_batch(models[name], task, 0, [0])
    assert message in str(error.value)


@pytest.mark.parametrize(
    "flag, most",
    [
        ("layout", "16,777,216"),
        ("prompts_file", "16,777,216"),
        ("image", "17,179,869,184"),
        ("features", "17,179,869,184"),
    ],
)
def test_a_file_that_is_too_large_is_refused_before_it_is_read(flag, most, tmp_path):
    path = tmp_path / "large"
    shape = (2**11, 2**20)
    with open(path, "wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        # Of holes, which take no room.
        file.truncate(file.tell() + 8 * math.prod(shape))
    with pytest.raises(ConfigError, match=f"--{flag}: cannot .*{path.name}.* {most}"):
        read_flags({flag: str(path)})
    with pytest.raises(ConfigError, match="a pipe, a device or the like|not a file"):
        read_flags({flag: "/dev/zero"})


def test_features_are_as_wide_as_in_training(models, tmp_path):
    for width in (4, 7):
        np.save(tmp_path / f"{width}.npy", np.zeros((1, width), np.float32))
    model = models["vector"]._replace(shapes={"embedding": ["float32", [4]]})
    for width in (4, 7):
        given = {"features": [str(tmp_path / f"{width}.npy")]}
        task = make_task(model, given, *options_of(model))
        if width == 4:
            make_batch(model, task, 0, [0])
            continue
        with pytest.raises(ConfigError, match="axis is 7, and the model .* with 4"):
            make_batch(model, task, 0, [0])


def test_a_row_of_features_has_a_limit(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 2**24 + 1), np.uint8))
    with pytest.raises(ConfigError, match="a row has 16,777,217 bytes, and at most"):
        read_flags({"features": str(tmp_path / "x.npy")})


def test_guidance_flags_are_read():
    assert parse_scale("4.5") == 4.5
    assert list(parse_scale("caption=5, depth=1.5").items()) == [
        ("caption", 5.0),
        ("depth", 1.5),
    ]
    assert parse_interval("0.2,0.8") == (0.2, 0.8)
    assert parse_pair("0,7") == (0, 7)
    for parse, text in [
        (parse_scale, "4,5"),
        (parse_scale, "caption=5,3"),
        (parse_scale, "much"),
        (parse_interval, "0.8,0.2"),
        (parse_pair, "3"),
    ]:
        with pytest.raises(ConfigError, match=f"={text}"):
            parse(text)


def test_guidance_names_the_conditions(models):
    for name, scale, message in [
        ("maps", {"caption": 2.0}, "no condition 'caption'; it has depth, segm"),
        ("none", 2.0, "this one has none: use --guidance_scale=1"),
    ]:
        with pytest.raises(ConfigError) as error:
            complete(models[name], {"guidance_scale": scale})
        assert message in str(error.value)
    assert complete(models["none"], {}).guidance.scale == 1
    assert complete(models["none"], {"tile": 8}).tile == 8
    with pytest.raises(ConfigError, match="--tile=7 is not a multiple of 2.*--tile=8"):
        complete(models["none"], {"tile": 7})
