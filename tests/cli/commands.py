"""Runs commands in this process up to where they would begin to work."""

import contextlib
import importlib
import sys
from unittest import mock

# Now, as its flags would else be taken for those of a command that imports it.
import grain  # noqa: F401
from absl import flags

from ldm_jax import cli
from ldm_jax.cli import flags as cli_flags
from ldm_jax.cli.cluster import check, define_cluster_flags
from ldm_jax.cli.command_line import read_flags


class Accepted(Exception):
    """A command found nothing wrong with its flags and its config."""


def _accept(*args, **kwargs):
    raise Accepted


# Command -> (its module, what begins its work: module and name).
COMMANDS = {
    "train": ("ldm_jax.training.__main__", ["ldm_jax.training.start.opening:hold"]),
    "sample": ("ldm_jax.sampling.__main__", ["ldm_jax.sampling.run:_draw"]),
    "convert": ("ldm_jax.convert.__main__", ["ldm_jax.convert.formats:convert"]),
    "encode": (
        "ldm_jax.encoding.__main__",
        ["ldm_jax.trained:load_first_stage", "ldm_jax.checkpoint:common_step"],
    ),
    "evaluate": (
        "ldm_jax.evaluation.__main__",
        [
            "ldm_jax.evaluation.subjects:config_of",
            "ldm_jax.evaluation.image_sets:open_images",
        ],
    ),
    "reference": (
        "ldm_jax.evaluation.make_reference",
        [
            "ldm_jax.evaluation.image_sets:open_images",
            "ldm_jax.evaluation.image_sets:open_training_set",
            "ldm_jax.evaluation.subjects:config_of",
        ],
    ),
    "nearest": (
        "ldm_jax.evaluation.nearest.__main__",
        [
            "ldm_jax.evaluation.subjects:config_of",
            "ldm_jax.evaluation.image_sets:open_images",
        ],
    ),
    "sweep": (
        "ldm_jax.evaluation.sweep.__main__",
        ["ldm_jax.evaluation.subjects:config_of"],
    ),
    "plan": ("ldm_jax.planning.__main__", ["ldm_jax.planning.plan:make_plan"]),
    "adherence": ("ldm_jax.evaluation.shapes.__main__", ["ldm_jax.trained:load_model"]),
    "shapes": ("ldm_jax.data.shapes.__main__", ["ldm_jax.data.shapes.prepare:prepare"]),
    "files": ("ldm_jax.data.shapes.files", ["ldm_jax.data.shapes.files:write"]),
}


class Command:
    """A command whose flags are those of this process, see `command`."""

    def __init__(self, main, arguments=""):
        self._main, self._arguments = main, arguments

    def __call__(self, *words):
        """Runs the command; raises Accepted, or what it finds wrong."""
        before = set(flags.FLAGS)
        argv = ["command", *words]
        try:
            with mock.patch.object(sys, "argv", argv):
                rest = read_flags(argv, self._arguments)
                values = flags.FLAGS
                check(
                    *(values.coordinator, values.num_processes),
                    *(values.process_id, values.distributed),
                )
                self._main(rest)
        finally:
            for name in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, name)
            for name in flags.FLAGS:
                flags.FLAGS[name].unparse()
            flags.FLAGS.mark_as_parsed()


@contextlib.contextmanager
def command(name):
    """Loads a command with flags of its own; yields a Command."""
    module_name, begins = COMMANDS[name]
    before, kept = set(flags.FLAGS), sys.modules.get(module_name)
    tables = cli_flags.GROUPS, cli_flags.REQUIRED, cli_flags._RENAMED
    found = []

    def capture(main, doc, arguments="", **options):
        found.append(Command(main, arguments))

    with contextlib.ExitStack() as stack:
        for table in tables:
            stack.callback(_restore, table, table.copy())
            table.clear()
        sys.modules.pop(module_name, None)
        stack.callback(_put_back, module_name, kept, before)
        for begin in begins:
            owner, attribute = begin.split(":")
            owner = importlib.import_module(owner)
            stack.enter_context(mock.patch.object(owner, attribute, _accept))
        stack.enter_context(mock.patch.object(cli, "run", capture))
        module = importlib.import_module(module_name)
        for begin in begins:
            if hasattr(module, begin.split(":")[1]):
                target = begin.split(":")[1]
                stack.enter_context(mock.patch.object(module, target, _accept))
        module.main()
        with cli_flags.group("cluster"):
            define_cluster_flags()
        yield found[0]


def _restore(table, rows):
    table.clear()
    (table.update if isinstance(table, dict) else table.extend)(rows)


def _put_back(name, module, before):
    sys.modules.pop(name, None)
    if module is not None:
        sys.modules[name] = module
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
