"""What an installation gives: the commands, the configs by name, and help in groups."""

import gc
import os
import re
import signal
import subprocess
import sys
import tarfile
import types

import pytest

from ldm_jax import cli, commands
from ldm_jax.errors import ConfigError
from tests.flags import xla_flags
from tests.published import NAMES, load
from tests.runs import ROOT, command, finish
from tests.test_old_workdirs import ARCHIVE

COMMANDS = (
    *("train", "sample", "convert"),
    *("evaluate", "reference", "sweep", "nearest", "plan"),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder as a wheel fills it: the package, and what pip reads of it."""
    folder = tmp_path_factory.mktemp("installed")
    build = ["egg_info", "--egg-base", folder, "build_py", "--build-lib", folder]
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", *build],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run(installed, tmp_path):
    """Runs a command in an empty folder; returns its exit status and output."""
    text = (installed / "ldm_jax.egg-info" / "entry_points.txt").read_text()
    entry_points = dict(re.findall(r"^(ldm-\w+) = (.+)$", text, re.MULTILINE))
    environment = os.environ | {
        "PYTHONPATH": str(installed),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(1),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }

    def run(name, *arguments):
        # As the script that pip writes.
        module, function = entry_points[name].split(":")
        code = (
            f"import sys; from {module} import {function}; "
            f"sys.argv[0] = {name!r}; sys.exit({function}())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        return done.returncode, done.stdout

    return run


_HELP = {}


@pytest.fixture
def help_of(run):
    """What a command prints for --help; each is started once."""

    def found(name):
        if name not in _HELP:
            _HELP[name] = run(f"ldm-{name}", "--help")
        return _HELP[name]

    return found


def test_an_installation_is_complete(installed):
    package = installed / "ldm_jax"
    for name in ("py.typed", "configs/common.py", "data/shapes/tokenizer.json"):
        assert (package / name).is_file(), name
    shipped = {path.name for path in (package / "configs").glob("*.py")}
    assert shipped == {path.name for path in (ROOT / "configs").glob("*.py")}
    about = (installed / "ldm_jax.egg-info" / "PKG-INFO").read_text()
    assert re.search(r"^License-File: LICENSE$", about, re.MULTILINE)
    version = re.search(r"^Version: (.+)$", about, re.MULTILINE)[1]
    assert f'__version__ = "{version}"' in (package / "__init__.py").read_text()


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Tiny workdirs of both stages."""
    folder = tmp_path_factory.mktemp("workdirs")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_configs_go_by_name_in_an_empty_folder(run, workdirs, shapes_dir, tmp_path):
    flags = [
        f"--config.data.data_dir={shapes_dir}",
        "--config.data.eval_split=",
        f"--config.first_stage.workdir={workdirs / 'autoencoder'}",
        "--config.train.num_steps=2",
        "--config.train.preview_images=0",
        "--config.backbone.channels=8",
        "--config.backbone.channel_mult=1",
        "--config.backbone.norm_groups=4",
        "--config.backbone.head_channels=8",
        "--workdir=runs/class",
    ]
    status, output = run("ldm-train", "--config=shapes_class:tiny", *flags)
    assert status == 0 and "step 2/2" in output, output
    assert (tmp_path / "runs" / "class" / "config.json").is_file()
    status, output = run("ldm-train", "--config=shapes_clas", *flags)
    assert status == 2 and output.startswith("error: ")
    assert "did you mean shapes_class?" in output and output.count("\n") == 1


def test_commands_work_in_an_empty_folder(run, workdirs, shapes_dir, tmp_path):
    flags = ["--outdir=samples", "--num_samples=1", "--num_steps=1", "--labels=heart"]
    status, output = run("ldm-sample", f"--workdir={workdirs / 'class'}", *flags)
    assert status == 0, output
    assert (tmp_path / "samples" / "samples" / "000000.png").is_file()
    status, output = run("ldm-convert", workdirs / "class", "there", "--raw")
    assert status == 0, output
    assert "note: --raw is now --noema; the next release drops the old" in output
    assert (tmp_path / "there" / "model_index.json").is_file()
    flags = [f"--data_dir={shapes_dir}", "--outdir=metrics", "--num_images=2"]
    flags += ["--split=validation"]
    status, output = run(
        "ldm-evaluate", f"--workdir={workdirs / 'autoencoder'}", *flags
    )
    assert status == 0 and "psnr" in output, output
    assert (tmp_path / "metrics" / "metrics.json").is_file()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_in_groups(help_of, name):
    status, output = help_of(name)
    assert status == 0
    lines = output.splitlines()
    assert lines[0].startswith(f"usage: ldm-{name} ") and lines[0].endswith("[flags]")
    titles = [line for line in lines if re.fullmatch(r"[a-z][a-z ]+:", line)]
    assert len(titles) >= 2
    assert "cluster:" in titles
    assert re.search(r"^  --\[no\]distributed ", output, re.MULTILINE)
    # Flags of libraries are for --helpfull.
    assert "--verbosity" not in output
    assert max(map(len, lines)) <= 88


def test_commands_spell_and_explain_flags_alike(help_of):
    explained = {}
    for name in COMMANDS:
        _, output = help_of(name)
        # A flag, and the lines that explain it.
        for flag, words in re.findall(r"^  --(\S+)((?:.*\n {20,})*.*)", output, re.M):
            explained.setdefault(flag.split("=")[0], set()).add(" ".join(words.split()))
    # They depend on the command.
    own = {"config", "image", "tile", "image_size", "num_samples", "first_stage"}
    own |= {"distances", "split", "prompts_file", "images", "reference"}
    # Of a sweep, lists.
    own |= {"sampler", "num_steps", "guidance_scale"}
    for flag in explained.keys() - own:
        assert len(explained[flag]) == 1, (flag, explained[flag])
    assert {"workdir", "outdir", "step", "[no]ema", "lpips_weights"} <= explained.keys()
    assert "first_stage" in explained and "data_dir" in explained


@pytest.mark.parametrize("name", ["train", "sample"])
def test_the_scripts_are_the_commands(help_of, name):
    status, output = finish(command(f"{name}.py", "--help"))
    assert status == 0
    _, installed = help_of(name)
    first, *rest = output.splitlines()
    assert first.startswith(f"usage: python {name}.py ")
    assert rest == installed.splitlines()[1:]


def test_wrong_flags_are_one_line(run):
    for wrong in ("--nothing=3", "nothing"):
        flags = ["--workdir=here", "--outdir=there", wrong]
        status, output = run("ldm-evaluate", *flags)
        assert status == 2 and output.startswith("error: ") and "nothing" in output
        assert output.count("\n") == 1


def test_missing_flags_are_named(run):
    status, output = run("ldm-evaluate", "--workdir=here")
    assert (status, output) == (
        2,
        "error: --outdir is missing; --help explains the flags\n",
    )


def test_nothing_loaded_is_looked_through_for_garbage(monkeypatch):
    room, seen = types.ModuleType("room"), []
    room.main = lambda: seen.append((gc.isenabled(), gc.get_freeze_count()))
    monkeypatch.setitem(sys.modules, "ldm_jax.training.__main__", room)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    gc.unfreeze()
    commands.train()
    ((enabled, frozen),) = seen
    assert enabled and frozen > 10_000


def test_configs_are_found_by_name_and_path(tmp_path, monkeypatch):
    assert cli.config_names() == NAMES
    named = cli.load_config("shapes_class:tiny").to_dict()
    assert named == load("shapes_class", "tiny").to_dict()
    path = ROOT / "configs" / "shapes_class.py"
    assert cli.load_config(f"{path}:tiny").to_dict() == named
    # From elsewhere, a path of the checkout stands for what is shipped.
    monkeypatch.chdir(tmp_path)
    assert cli.load_config("configs/shapes_class.py:tiny").to_dict() == named
    for missing in ("nothing", "nothing.py", "configs/nothing.py"):
        with pytest.raises(
            ConfigError, match=f"no config '{missing}'.* imagenet_class"
        ):
            cli.find_config(missing)
    with pytest.raises(ConfigError, match="variant"):
        cli.load_config("shapes_class:huge")


def test_configs_of_the_user_come_first_and_take_from_ours(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text(
        "from configs import shapes_class\n"
        "def get_config(variant=''):\n"
        "    config = shapes_class.get_config('tiny')\n"
        "    config.seed = 7\n"
        "    return config\n"
    )
    monkeypatch.chdir(tmp_path)
    assert "mine" in cli.config_names()
    assert cli.load_config("mine").seed == 7
    assert cli.load_config("configs/mine.py").seed == 7
