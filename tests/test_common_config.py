"""configs/common.py explains every key of a config, or says what does."""

import importlib
import inspect
import re
import textwrap

import pytest
from ml_collections import ConfigDict

from configs import common

SECTIONS = {
    "data": common.data,
    "train": common.train,
    "sample": common.sample,
    "eval": common.evaluation,
    "first_stage": common.first_stage,
    "schedule": common.schedule,
    "loss of a second stage": common.diffusion_loss,
    "loss of a first stage": common.autoencoder_loss,
}


def _doc(function):
    """A docstring as it stands in the file: Python 3.13 takes its indentation away."""
    return textwrap.indent(inspect.getdoc(function), "    ")


def _parts(docstring):
    """The functions of parts of a section, which its docstring names."""
    return re.findall(r"`(_\w+)`", docstring)


def _texts(docstring):
    """A docstring, and those of what it names as `Name in `file.py`` or as `_part`."""
    yield docstring
    yield from (_doc(getattr(common, name)) for name in _parts(docstring))
    named = re.findall(r"(\w+)\s+in\s+`([\w/]+)\.py`", docstring)
    for name, file in named:
        module = importlib.import_module(f"ldm_jax.{file.replace('/', '.')}")
        found = getattr(module, name)
        # A table explains nothing but has its rows by name.
        yield _doc(found) if callable(found) else ""


def _explained(docstring):
    """The keys that a docstring, or what it names, lists as `key: ...`."""
    heads = r"^ +((?:\w+, )*\w+): \S"
    found = (re.findall(heads, text, re.MULTILINE) for text in _texts(docstring))
    return {key for heads in found for head in heads for key in head.split(", ")}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_of_a_section_is_explained(section):
    make = SECTIONS[section]
    assert make().keys() - _explained(_doc(make)) == set()


def test_the_parts_of_a_section_are_the_whole_of_it():
    parts = [getattr(common, name)() for name in _parts(_doc(common.data))]
    keys = [key for part in parts for key in part]
    assert sorted(keys) == sorted(common.data())


@pytest.mark.parametrize(
    ("make", "inner"),
    [
        (common.train, "optimizer"),
        (common.train, "mesh"),
        (common.evaluation, "weights"),
    ],
)
def test_every_key_of_a_section_in_a_section_is_named(make, inner):
    text = re.search(rf"(?ms)^    {inner}: (.*?)^    \w", _doc(make))[1]
    for key in make()[inner]:
        assert re.search(rf"\b{key}\b", text), key


def _lines(name):
    """What the module's docstring says of a network."""
    return re.search(rf"^{name}: .*(?:\n  .*)*", common.__doc__, re.MULTILINE)[0]


def test_every_key_of_a_network_is_explained():
    config = common.autoencoder()
    for name in ("first_stage", "discriminator"):
        keys = set(config[name]) - {"kind"}
        assert keys - _explained(_lines(name)) == set()
    assert "channels" in _explained(_lines("backbone"))
    assert "channels" in _explained(_lines("classifier"))


def test_every_section_is_of_a_function_or_named_here():
    for make in (common.autoencoder, common.diffusion, common.classifier):
        for key, value in make().items():
            named = re.search(rf"(?m)^{key}: |`{key}`", common.__doc__)
            assert key in SECTIONS or key == "loss" or named, key
            assert isinstance(value, ConfigDict) or named
