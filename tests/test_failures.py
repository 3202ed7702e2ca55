"""Whatever fails is one line, with a status that docs/reliability.md explains."""

import contextlib
import errno
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from ldm_jax import config, errors
from ldm_jax.cli.failures import explain
from ldm_jax.cli.run import _unraisable
from ldm_jax.console import Console
from ldm_jax.errors import ConfigError, Stopped, UserError
from ldm_jax.lock import FILE
from tests.runs import ROOT


def _raised(function, *arguments):
    try:
        function(*arguments)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def _too_large():
    return jnp.zeros((1 << 20, 1 << 20))


def _nested(load):
    return lambda: load("[" * 100_000)


CASES = {
    "ours": (lambda: errors.DataError("x.png is damaged"), 3, "^x.png is damaged$"),
    "full disk": (
        lambda: OSError(errno.ENOSPC, "No space", "a"),
        6,
        "^a: No space; .*",
    ),
    "full disk of a library": (
        lambda: ValueError("UNKNOWN: cannot write\n [No space left on device]"),
        6,
        "cannot write; what was saved before is intact",
    ),
    "read only": (
        lambda: OSError(errno.EROFS, "Read-only", "a/b"),
        6,
        "a/b: Read-only",
    ),
    "permission": (lambda: OSError(errno.EACCES, "Denied", "a"), 6, "a: Denied; give"),
    "absent": (lambda: _raised(open, "/absent"), 2, "^/absent: No such file or dir"),
    "pipe": (lambda: BrokenPipeError(errno.EPIPE, "Broken"), 1, "output has gone"),
    "device memory": (
        lambda: _raised(_too_large),
        7,
        "^out of memory on the device: 4 TiB were asked for; lower --batch_size$",
    ),
    "host memory": (
        lambda: _raised(np.zeros, (1 << 24, 1 << 24)),
        7,
        "^out of memory on the host: Unable to allocate .*; lower --batch_size$",
    ),
    "nested JSON": (
        lambda: _raised(_nested(json.loads)),
        2,
        "^a JSON file or value is nested too deeply",
    ),
    "malformed JSON": (
        lambda: _raised(json.loads, "{"),
        2,
        "^what was read is not JSON",
    ),
    "bytes": (lambda: _raised(b"\xff".decode), 2, "not UTF-8 text: .*0xff"),
    "package": (lambda: _raised(__import__, "absent"), 1, "'absent': install it"),
    "sockets": (lambda: ConnectionRefusedError(111, "Refused"), 1, "^Refused$"),
    "accelerator": (
        lambda: RuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2147483648 "
            "bytes.\nBufferAssignment..."
        ),
        7,
        "on the device: 2 GiB were asked for; lower",
    ),
    "barrier": (
        lambda: TimeoutError(
            "Timeout waiting at barrier 'sync'. The original error raised was: "
            "DEADLINE_EXCEEDED: Barrier timed out.\nMore"
        ),
        9,
        "^the processes of this job did not meet in time .*; see what it printed, and",
    ),
    "meeting": (
        lambda: RuntimeError(
            "UNKNOWN: Gloo context initialization failed: DEADLINE_EXCEEDED: "
            "GetKeyValue() timed out with key: cpu:gloo/0,2048/0 and duration: 30s "
            "[type.googleapis.com/tensorflow.CoordinationServiceError='']"
        ),
        9,
        "^the processes of this job did not meet in time .*; see what it printed, and",
    ),
    "flax": (
        lambda: ScopeParamShapeError("bias", "/conv", (2,), (3,)),
        4,
        '^weights and model do not agree: .*"bias"',
    ),
    "group": (
        lambda: ExceptionGroup("x", [ExceptionGroup("y", [ConfigError("that")])]),
        2,
        "^that$",
    ),
    "unexpected": (
        lambda: _raised(config.upgrade, {"unet": {}, "train": {"freeze": 1}}),
        1,
        r"^unexpected TypeError: .* \(in ldm_jax/config.py, line \d+\); --traceback",
    ),
    "a module of the user": (
        lambda: _raised(lambda: {}["x"]),
        1,
        r"^KeyError: 'x' \(in .*test_failures.py, line \d+\); fix it there",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_any_error_is_one_line_and_a_status(case):
    make, code, pattern = CASES[case]
    failure = explain(make(), "--batch_size")
    assert failure.exit_code == code
    assert re.search(pattern, failure.line), failure.line
    assert "\n" not in failure.line


def test_a_line_is_short_and_does_not_steer_the_terminal():
    assert explain(ConfigError("a\x1b[31m\n\tb")).line == "a [31m b"
    assert len(explain(ConfigError("long " * 9999)).line) < 1300


def test_the_documented_codes_are_those_of_the_errors():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d+) \| ([^|]+) \|", text, re.MULTILINE))
    documented = {
        (name, int(code)) for code, row in rows.items() for name in _names_in(row)
    }
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    kinds = [k for k in kinds if issubclass(k, UserError) and k is not UserError]
    own = {(k.__name__, k.exit_code) for k in kinds if k not in (Stopped,)}
    own |= {("Stopped", Stopped("", number).exit_code) for number in (2, 15)}
    # A kind of another kind has its code and need not be listed.
    inherited = {(k.__name__, k.exit_code) for k in kinds if "exit_code" not in vars(k)}
    assert documented | (inherited - {("Stopped", 1)}) == own
    assert {0, 1, 130, 143} <= set(map(int, rows))


def _names_in(row):
    return re.findall(r"`(\w+)`", row)


# A command that fails with libraries at work, which are heard when Python ends.
PROGRAM = """
import asyncio, multiprocessing.shared_memory, sys, threading
from ldm_jax import cli

class Loud:
    def __del__(self):
        print("chatter", file=sys.stderr)

def main(argv):
    global loud
    loud, loop = Loud(), asyncio.new_event_loop()
    loop.create_task(asyncio.sleep(9))
    shared = multiprocessing.shared_memory.SharedMemory(create=True, size=8)
    print("begun", flush=True)
    {action}

cli.run(main, "A command.", uses_jax=False)
"""


def _start(action, *flags, **options):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(action=action), *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        **options,
    )


@pytest.mark.parametrize(
    "action, status, last",
    [
        ("raise OSError(28, 'No space', 'x')", 6, "error: x: No space; "),
        ("import time; time.sleep(60)", 130, "stopped by Ctrl-C"),
        ("import time; time.sleep(60)", 143, "asked to stop: what is written is "),
        ("open('/dev/full', 'w').write('x' * 99999)", 6, "error: No space left"),
    ],
)
def test_the_error_is_the_last_line(action, status, last):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with _start(action, **pipes) as process:
        assert process.stdout.readline() == "begun\n"
        if status > 128:
            process.send_signal(status - 128)
        output = process.stdout.read()
    assert process.returncode == status, output
    assert output.startswith(last) and output.count("\n") == 1, output


def test_asked_to_stop_a_command_releases_its_folder(tmp_path):
    """As the first process of a container, too, which has no default action."""
    action = (
        f"import time; from ldm_jax.lock import hold; held = hold({str(tmp_path)!r}); "
        "held.__enter__(); print('held', flush=True); time.sleep(60)"
    )
    with _start(action, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "begun\n"
        assert process.stdout.readline() == "held\n" and (tmp_path / FILE).exists()
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 143 and not (tmp_path / FILE).exists()


def test_an_import_is_interrupted_in_one_line(tmp_path):
    (tmp_path / "slow_to_load.py").write_text("import time; time.sleep(60)")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    action = f"sys.path.insert(0, {str(tmp_path)!r}); import slow_to_load"
    with _start(action, **pipes) as process:
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "\nstopped by Ctrl-C\n"
    assert process.returncode == 130


@pytest.mark.parametrize("text", ["Event loop is closed", "else"])
def test_what_ends_after_a_save_that_failed_is_not_heard(text, monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "__unraisablehook__", heard.append)
    told = types.SimpleNamespace(exc_value=RuntimeError(text))
    _unraisable(told)
    assert heard == ([told] if text == "else" else [])


def test_ctrl_c_in_a_callback_that_cannot_raise_comes_again(
    monkeypatch, capsys, ctrl_c
):
    class Dropped:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "unraisablehook", _unraisable)
    with pytest.raises(KeyboardInterrupt):
        dropped = Dropped()
        del dropped
        time.sleep(10)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("script", ["sample.py", "train.py"])
def test_a_command_is_interrupted_while_it_is_loaded(script, tmp_path):
    # In the place of what takes seconds.
    (tmp_path / "absl.py").write_text(
        "import time; print('begun', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, ROOT / script],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "\nstopped by Ctrl-C\n"
    assert process.returncode == 130


def test_a_flag_shows_where_an_error_arose():
    with _start("[][0]", "--traceback", stderr=subprocess.PIPE) as process:
        output = process.stderr.read()
    assert process.returncode == 1
    assert "Traceback" in output and "IndexError" in output


def test_output_that_cannot_be_written_is_a_failure():
    pipes = {"stdout": open("/dev/full", "w"), "stderr": subprocess.PIPE}
    with _start("print('x')", **pipes) as process, pipes["stdout"]:
        output = process.stderr.read()
    assert process.returncode == 6 and output.count("\n") == 1, output


def test_a_console_that_has_gone_ends_no_run(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        console = Console(total=2, initial=0)
        for _ in range(2):
            console.line("x")
            console.advance()
        # What the buffer holds shall not fail the test in the end.
        with contextlib.suppress(OSError):
            full.close()
