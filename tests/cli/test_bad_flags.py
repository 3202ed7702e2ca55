"""Hundreds of wrong flags and overrides, each refused in one line before any work."""

import re
import shlex

import pytest
from absl import flags

from ldm_jax import ranges, sampling
from ldm_jax.cli import flags as cli_flags
from ldm_jax.cli.failures import one_line
from ldm_jax.errors import UserError
from tests.cli.bad_flags import BAD, BASES, GOOD
from tests.cli.commands import COMMANDS, Accepted, command
from tests.sampling.common import make_trained


@pytest.fixture(scope="module")
def trained():
    """A model on pixels, conditioned on the class."""
    return make_trained("label")


@pytest.fixture
def run(trained, monkeypatch, tmp_path):
    """Runs all lines of a case; yields (line, what came of it)."""
    monkeypatch.setattr(sampling, "load_model", lambda *args, **options: trained)

    def run(case, lines):
        name, before = BASES[case]
        with command(name) as run_command:
            for line in lines:
                words = shlex.split(f"{before} {line}")
                try:
                    run_command(*words)
                except Exception as error:
                    yield line, error
                else:
                    yield line, None

    yield run


def _names(line):
    """Last parts of the names of a line's flags: a message must hold one of them."""
    words = [word for word in shlex.split(line) if word != "--"]
    names = (re.sub(r"^-*(no)?", "", word.split("=")[0]) for word in words)
    return [name.split(".")[-1] for name in names]


# Of what is missing or superfluous as a whole, a message says so.
_UNNAMED = (
    *("train", "sampling", "converting", "evaluating", "references", "encoding"),
    "planning",
)


@pytest.mark.parametrize("case", BAD)
def test_what_makes_no_sense_is_refused_in_one_line(case, run):
    wrong = []
    for line, error in run(case, BAD[case]):
        text = one_line(error)
        named = any(name in text for name in _names(line)) or case in _UNNAMED
        told = isinstance(error, UserError | flags.Error) and len(text) < 600
        if not (told and named) or isinstance(error, Accepted):
            wrong.append(f"{line}: {type(error).__name__}: {text}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("case", GOOD)
def test_what_makes_sense_is_accepted(case, run):
    wrong = [
        f"{line}: {type(error).__name__}: {error}"
        for line, error in run(case, GOOD[case])
        if not isinstance(error, Accepted)
    ]
    assert not wrong, "\n".join(wrong)


def test_there_are_more_than_a_thousand():
    # As docs/reliability.md says.
    assert sum(map(len, BAD.values())) > 1000


@pytest.mark.parametrize("name", COMMANDS)
def test_every_number_has_a_range(name):
    with command(name):
        names = {n for names in cli_flags.GROUPS.values() for n in names}
        numbers = {n for n in names if flags.FLAGS[n].flag_type() in ("int", "float")}
    assert numbers <= ranges.FLAGS.keys()
