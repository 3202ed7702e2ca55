"""What `ldm-plan` is told, and what is told of it."""

import re

import pytest

from ldm_jax.data.shapes.scenes import CLASS_NAMES
from ldm_jax.errors import ConfigError
from tests.cli.commands import command
from tests.runs import ROOT


@pytest.mark.parametrize("path", ["ldm_jax/planning/__main__.py", "docs/planning.md"])
def test_the_example_of_compiling_has_the_classes_of_shapes(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    found = re.findall(r"--config=shapes_class [^`]*?--num_classes=(\d+)", text)
    assert found == [str(len(CLASS_NAMES))]


def test_a_mesh_says_how_many_devices_there_are():
    with command("plan") as plan, pytest.raises(ConfigError) as caught:
        plan("--config=shapes_class:tiny", "--mesh=data=-1,fsdp=2")
    assert str(caught.value) == (
        "--mesh=data=-1,fsdp=2 must give the numbers of devices along its axes, as "
        "data=8,fsdp=4; a plan counts no devices, of which -1 is the rest"
    )
