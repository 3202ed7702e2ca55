"""README.md prints the loss as it is."""

import ast
import inspect
import pathlib
import re
import textwrap

from ldm_jax import latent_diffusion

README = pathlib.Path(__file__).parent.parent / "README.md"


def without_docstring(function):
    """Body of a function, without its docstring."""
    source = textwrap.dedent(inspect.getsource(function))
    body = ast.parse(source).body[0].body
    lines = source.splitlines()
    first = body[1] if ast.get_docstring(ast.parse(source).body[0]) else body[0]
    return "\n".join(lines[first.lineno - 1 :])


def printed(name):
    """Signature and body of a function in a block of README.md."""
    text = README.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    block = next(block for block in blocks if block.startswith(f"def {name}("))
    signature, body = block.rstrip().split("\n", 1)
    return signature, body


def test_the_loss_is_printed_line_by_line():
    signature, body = printed("loss")
    assert body == without_docstring(latent_diffusion.loss)
    arguments = inspect.signature(latent_diffusion.loss).parameters.values()
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in arguments]
    assert signature == f"def loss{inspect.Signature(plain)}:"


def test_the_loss_reads_like_the_paper():
    lines = without_docstring(latent_diffusion.loss).splitlines()
    assert len([line for line in lines if line.strip()]) <= 22
