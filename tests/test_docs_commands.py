"""Every command of the documentation parses; `tests/docs_commands.py` runs them."""

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.docs_commands import PAGES, ROOT, program_of, read_commands

# Flags are the program's: each command is parsed in a process that has only these.
CHECK = """
import importlib, json, os, sys
program, commands = json.load(sys.stdin)
main = importlib.import_module(program).main
for words in commands:
    if not os.fork():
        sys.argv = [program, *words, "--only_check_args"]
        try:
            main()
            os._exit(1)
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(end.code or 0)
    if os.wait()[1]:
        print(" ".join(words))
"""


def commands_of(page):
    """Commands of a page by module: name -> list of lists of words."""
    found = {}
    for command in read_commands(page):
        program = program_of(command)
        if program is not None:
            found.setdefault(program[0], []).append(program[1])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page):
    for name, commands in commands_of(page).items():
        package = importlib.util.find_spec(name).submodule_search_locations
        module = f"{name}.__main__" if package else name
        result = subprocess.run(
            [sys.executable, "-c", CHECK],
            input=json.dumps([module, commands]),
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0 and not result.stdout, result.stdout + (
            result.stderr
        )


def test_commands_are_found():
    assert sum(len(read_commands(page)) for page in PAGES) > 40
