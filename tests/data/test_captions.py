"""Captions: which is drawn, which are left out, missing, no text or too long."""

import numpy as np
import pytest

from ldm_jax.data.folder import FolderSource
from ldm_jax.data.inputs import (
    apply_inputs,
    held_out_inputs,
    make_inputs,
    needed_keys,
    optional_keys,
    truncated_inputs,
)
from ldm_jax.data.loader import make_loader
from ldm_jax.data.open_source import open_source
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.evaluation.captions import OneCaption
from tests.data.common import make_image, write_images
from tests.data.tables import make_rows, write_parquet

LENGTH = 20


def make(**options):
    entry = dict(kind="caption", tokenizer="shapes", max_length=LENGTH)
    return make_inputs({"it": entry | options})["it"]


def ids(text):
    return make().tokenizer([text])[0].tobytes()


def drawn(example, count=400, **options):
    """How often each text is drawn."""
    made = make(**options)
    texts = ["a red star", "a blue ring", "a green star", ""]
    names = {ids(text): text for text in texts}
    rngs = map(np.random.default_rng, range(count))
    found = [names[made(example, rng).tobytes()] for rng in rngs]
    return {text: found.count(text) / count for text in texts if text in found}


def test_captions_of_several_keys_are_drawn_by_weight():
    example = {"a": "a red star", "b": ["a blue ring", "a green star"], "c": None}
    options = dict(keys=("a", "b", "c"), weights=(1.0, 4.0, 5.0))
    found = drawn(example, **options)
    assert found["a red star"] == pytest.approx(0.2, abs=0.06)
    assert found["a blue ring"] == pytest.approx(0.4, abs=0.08)
    made = make(**options)
    assert needed_keys({"it": made}) == optional_keys({"it": made}) == ["a", "b", "c"]
    # What a flag gives needs no key of the data's.
    text = made.place("caption", "a red star")
    assert apply_inputs({"it": made}, text, None)["it"].tobytes() == ids("a red star")
    with pytest.raises(ValueError, match='has no "a" for input "it"'):
        apply_inputs({"it": made}, {"c": []}, None)


def test_captions_are_left_out_in_training_alone():
    example = {"caption": "a red star"}
    assert drawn(example, dropout=0.25)[""] == pytest.approx(0.25, abs=0.07)
    inputs = {"it": make(dropout=0.9)}
    held_out = held_out_inputs(inputs)
    for seed in range(9):
        rng = np.random.default_rng(seed)
        assert held_out["it"](example, rng).tobytes() == ids("a red star")
    batches = {
        train: load(example, train, dropout=0.9)["it"] for train in (True, False)
    }
    assert batches[False][0].tobytes() == ids("a red star")
    assert ids("") in {row.tobytes() for row in batches[True]}


class Source(list):
    num_classes = class_names = None

    def describe(self, index):
        return f"example {index}"


def start(example, train=True, **options):
    """Loads an example again and again."""
    entry = dict(kind="caption", tokenizer="shapes", max_length=LENGTH)
    section = dict(image_size=8, inputs=dict(it=entry | options))
    source = Source([example | {"image": make_image(8, 8)}])
    return make_loader(source, section, batch_size=8, seed=0, train=train)


def load(*arguments, **options):
    loader = start(*arguments, **options)
    try:
        return next(loader)
    finally:
        loader.close()


def test_a_missing_caption_is_an_error_or_the_fallback():
    assert drawn({"caption": None}, 3, fallback="a blue ring") == {"a blue ring": 1}
    assert drawn({}, 3, fallback="") == {"": 1}
    made = {"it": make()}
    with pytest.raises(ValueError, match='has no "caption"'):
        apply_inputs(made, {"caption": None}, None)
    assert optional_keys(made) == []
    lenient = {"it": make(fallback="")}
    assert optional_keys(lenient) == ["caption"]
    # An input that needs it makes it one that must be there.
    assert optional_keys(lenient | {"too": made["it"]}) == []


@pytest.mark.parametrize("caption", [3, [None, 3.5], np.float32(1), {"a": 1}])
def test_a_caption_that_is_no_text(caption):
    with pytest.raises(ValueError, match="a caption is .*, which is no text"):
        apply_inputs({"it": make()}, {"caption": caption}, None)


def test_captions_that_are_too_long_are_counted():
    long = "a red star " * 20
    made = {"it": make()}
    for caption, cut in (("a red star", []), (long, ["it"])):
        example = {"caption": caption}
        result = apply_inputs(made, example, None)
        assert truncated_inputs(made, example, result) == cut
    # The one that was drawn counts.
    example = {"caption": [long, "a red star"]}
    rngs = map(np.random.default_rng, range(20))
    found = [
        (r["it"], truncated_inputs(made, example, r))
        for r in (apply_inputs(made, example, g) for g in rngs)
    ]
    assert all(bool(cut) == (value.tobytes() == ids(long)) for value, cut in found)
    assert {bool(cut) for _, cut in found} == {True, False}


def test_the_loader_counts_what_is_too_long(caplog):
    loader = start({"caption": "a red star " * 20})
    with caplog.at_level("WARNING"):
        next(loader), next(loader)
    loader.close()
    assert loader.cut == {"it": 16} and not loader.shortened
    assert caplog.text.count("only a part") == 1


def test_captions_in_a_folder(tmp_path):
    write_images(tmp_path, ["0.png", "1.png"])
    (tmp_path / "0.txt").write_text("a red star")
    (tmp_path / "0.long.txt").write_text("a large red star\nit is red")
    keys = ["caption", "long"]
    source = FolderSource(str(tmp_path), "all", keys=keys, optional=keys)
    long = ["a large red star", "it is red"]
    assert source[0].items() >= {"caption": "a red star", "long": long}.items()
    assert source[1].keys() == {"image"}
    with pytest.raises(ValueError, match="1.txt is missing"):
        FolderSource(str(tmp_path), "all", keys=keys, optional=["long"])[1]


def test_columns_of_captions_are_what_the_input_asks_for(tmp_path):
    rows = make_rows(4)
    rows[2] |= {"caption": None, "text": None}
    path = write_parquet(tmp_path / "x.parquet", rows)
    entry = dict(kind="caption", tokenizer="shapes", keys=("text", "caption"))
    section = dict(source="parquet", name=path, inputs=dict(it=entry))
    source = open_source(section, "all")
    assert source[1]["text"] == "text 1" and source[1]["caption"] == rows[1]["caption"]
    assert {"text", "caption"}.isdisjoint(source[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(keys=("a", "b"), weights=(1,)), "a weight for each"),
        (dict(keys=("a", "a")), "give different keys"),
        (dict(weights=(0,)), "weights"),
        (dict(dropout=1.0), "dropout"),
        (dict(fallback=3), "fallback"),
        (dict(keys=()), "keys"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


BLANKS = {
    "one": ({"a": ""}, {}, {"": 1}),
    "with a fallback": ({"a": " "}, dict(fallback="a blue ring"), {"a blue ring": 1}),
    "beside others": ({"a": ["", "a red star"]}, {}, {"a red star": 1}),
    "under one key": ({"a": "", "b": "a red star"}, {}, {"a red star": 1}),
    "null": ({"a": [None], "b": ["a red star", None]}, {}, {"a red star": 1}),
}


@pytest.mark.parametrize("case", BLANKS)
def test_blank_captions_count_where_there_is_nothing_else(case):
    example, options, expected = BLANKS[case]
    keys = ("a", "b") if len(example) > 1 else ("a",)
    assert drawn(example, 20, keys=keys, **options) == expected
    # What is measured is what the model is given.
    measured = OneCaption([example], keys, options.get("fallback"))
    assert [measured[0]["caption"]] == [*expected]


@pytest.mark.parametrize("value", [None, [], [None]])
def test_an_example_without_captions_is_measured_by_the_fallback_or_named(value):
    class Source(list):
        def describe(self, index):
            return f"row {index}"

    source = Source([{"caption": value, "image": 0}])
    assert OneCaption(source, ("caption",), "a cat").caption(0) == "a cat"
    assert OneCaption(source)[0] == {"image": 0}
    with pytest.raises(DataError, match="row 0 has no caption"):
        OneCaption(source).caption(0)
    source[0]["caption"] = [3]
    with pytest.raises(
        DataError, match="caption of row 0: a caption is 3, which is no"
    ):
        OneCaption(source).caption(0)


def test_a_table_without_captions_names_the_option(tmp_path):
    rows = [{"image": {"bytes": b""}, "text": "a red star"}]
    path = write_parquet(tmp_path / "x.parquet", rows)
    entry = dict(kind="caption", tokenizer="shapes", max_length=LENGTH)
    section = dict(source="parquet", name=path, inputs=dict(it=entry))
    with pytest.raises(ConfigError, match='keys of an input .*caption"; .*image, text'):
        open_source(section, "all")
