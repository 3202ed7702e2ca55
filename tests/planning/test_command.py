"""What `ldm-plan` is told, and what is told of it."""

import re

import pytest

from ldm_jax.data.shapes.scenes import CLASS_NAMES
from tests.runs import ROOT


@pytest.mark.parametrize("path", ["ldm_jax/planning/__main__.py", "docs/planning.md"])
def test_the_example_of_compiling_has_the_classes_of_shapes(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    found = re.findall(r"--config=shapes_class [^`]*?--num_classes=(\d+)", text)
    assert found == [str(len(CLASS_NAMES))]
