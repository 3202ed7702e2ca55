"""Configs that fail, and how keys are set on the command line."""

import pytest
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ldm_jax import cli
from ldm_jax.cli.overrides import set_key
from ldm_jax.errors import ConfigError


@pytest.mark.parametrize(
    "text, message",
    [
        ("import nothing_there\n", "fails in line 1: ModuleNotFoundError"),
        ("x = 1\nx.y = 2\n", "fails in line 2: AttributeError"),
        ("def get_config(:\n", "fails in line 1: SyntaxError"),
        ("x = 1\n", "defines no function get_config"),
        ("def get_config():\n    return 3\n", "must return a ConfigDict, got int"),
        ("def get_config():\n    return 1 / 0\n", "line 2: ZeroDivisionError"),
    ],
)
def test_a_file_that_fails_is_named_with_its_line(text, message, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        cli.load_config(str(path))
    assert str(path) in str(error.value)


def test_a_file_without_variants_says_so(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_config():\n    pass\n")
    with pytest.raises(ConfigError, match="has no variants, so none 'tiny'"):
        cli.load_config(f"{path}:tiny")


def _set(key, *texts):
    config = ConfigDict(
        dict(
            whole=3,
            real=0.5,
            word="a",
            switch=True,
            several=(1, 2),
            unset=placeholder(float),
            unset_word=placeholder(str),
            inner=dict(deep=dict(x=1)),
        )
    ).lock()
    for index, text in enumerate(texts):
        set_key(config, key, text, again=index > 0)
    section = config
    for part in key.split("."):
        section = section[part]
    return section


@pytest.mark.parametrize(
    "key, texts, value",
    [
        ("whole", ["7"], 7),
        ("whole", ["1e3"], 1000),
        ("whole", ["None"], None),
        ("whole", ["1,2"], (1, 2)),
        ("real", ["1"], 1.0),
        ("word", ["None"], None),
        ("word", ["none"], "none"),
        ("unset_word", ["None"], None),
        ("word", [""], ""),
        ("switch", ["off"], False),
        ("several", ["3"], (3,)),
        ("several", ["3,4"], (3, 4)),
        ("several", ["(3, 4)"], (3, 4)),
        ("several", ["a,b"], ("a", "b")),
        ("several", ["runs/a"], ("runs/a",)),
        ("several", ["3", "4"], (3, 4)),
        ("several", [""], ()),
        ("unset", ["2"], 2.0),
        ("unset_word", ["2"], "2"),
        ("inner.deep.x", ["2"], 2),
        ("inner.deep.new", ["0.5"], 0.5),
        ("inner.deep.new", ["true"], True),
        ("inner.deep.new", ["word"], "word"),
        ("inner.new", ["1,2"], (1, 2)),
    ],
)
def test_values_are_of_the_type_of_the_key(key, texts, value):
    found = _set(key, *texts)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "key, text, message",
    [
        ("whole", "x", "--config.whole=x must be a whole number"),
        ("whole", "inf", "must be a whole number"),
        ("real", "", "must be a number"),
        ("switch", "2", "must be True or False"),
        ("inner", "2", "--config.inner is a section: set its keys, as .*inner.deep="),
        ("innr.deep.x", "2", "did you mean --config.inner.deep.x"),
        ("inner.dep.x", "2", "section inner has no section 'dep'; did you mean"),
        ("whole.x", "2", "the config has no section 'whole'"),
        ("whol", "2", "no key 'whol'; did you mean --config.whole"),
    ],
)
def test_what_does_not_fit_is_named(key, text, message):
    with pytest.raises(ConfigError, match=message):
        _set(key, text)


@pytest.mark.parametrize("entry", ["conditions.score", "data.inputs.score"])
def test_new_entries_are_for_config_files(entry):
    config = ConfigDict({"conditions": {"label": {}}, "data": {"inputs": {}}})
    with pytest.raises(ConfigError, match="no section 'score'.* into a config file"):
        set_key(config, f"{entry}.kind", "feature")
