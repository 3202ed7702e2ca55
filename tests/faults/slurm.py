"""A Slurm cluster on the hosts of `hosts`, where Slurm and munge are installed."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import time

_CONF = """
ClusterName=test
SlurmctldHost={head}
SlurmUser=root
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout=20
KillWait=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
GresTypes=gpu
NodeName={names} CPUs=2 Gres=gpu:1 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def possible():
    """Whether Slurm's daemons and munge's are there."""
    programs = ("slurmctld", "slurmd", "munged", "sbatch")
    return all(shutil.which(name, path=_path()) for name in programs)


def _path():
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


class Cluster:
    """A cluster, which runs while the `with` block does.

    Attributes:
      nodes: The hosts on which jobs run.
    """

    def __init__(self, folder, head, nodes):
        """Starts it.

        Args:
          folder: Folder for its state and logs.
          head: Host that has the controller.
          nodes: Hosts on which jobs run.
        """
        self._folder, self._head, self.nodes = pathlib.Path(folder), head, nodes
        for name in ("state", *(node.name for node in nodes)):
            (self._folder / name).mkdir(parents=True)
        conf = self._folder / "slurm.conf"
        names = ",".join(node.name for node in nodes)
        conf.write_text(_CONF.format(head=head.name, folder=folder, names=names))
        # Jobs may ask for a card; a file must stand for it.
        (self._folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        self._environment = os.environ | {"SLURM_CONF": str(conf), "PATH": _path()}
        with contextlib.ExitStack() as stack:
            self._stack = stack
            self._start_munge()
            self._daemon(head, "slurmctld", "-D", "-c")
            for node in nodes:
                self.start_node(node)
            self.await_output(f"{len(nodes)} idle", "sinfo", "-h", "-o", "%D %T")
            self._stack = stack.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stack.close()

    def start_node(self, node):
        """Starts the daemon of a node, as where it starts itself."""
        self._daemon(node, "slurmd", "-D", "-N", node.name)

    def _daemon(self, host, *command):
        log = open(self._folder / f"{command[0]}.{host.name}.log", "a")
        self._stack.enter_context(log)
        options = dict(stdout=log, stderr=subprocess.STDOUT, env=self._environment)
        self._stack.callback(_end, host.start(command, **options))

    def _start_munge(self):
        """Starts what vouches for users, once for all hosts, as they share the disk."""
        key, socket = self._folder / "munge.key", self._folder / "munge.socket"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        command = ["munged", "--foreground", "--force", f"--key-file={key}"]
        command += [f"--socket={socket}", f"--pid-file={self._folder}/munge.pid"]
        command += [f"--log-file={self._folder}/munge.log"]
        command += [f"--seed-file={self._folder}/munge.seed"]
        log = self._stack.enter_context(open(self._folder / "munged.log", "w"))
        process = subprocess.Popen(
            command, env=self._environment, stdout=log, stderr=subprocess.STDOUT
        )
        self._stack.callback(_end, process)
        # What is queued again starts after as many seconds as these last.
        conf = self._folder / "slurm.conf"
        conf.write_text(conf.read_text() + f"AuthInfo=socket={socket},cred_expire=5\n")

    def run(self, *command, **environment):
        """Runs a command of Slurm's on the head; returns what it printed."""
        process = self._head.start(
            command,
            env=self._environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, f"{command}: {output}"
        return output.strip()

    def await_output(self, text, *command, seconds=60):
        """Waits until a command of Slurm's prints a text; returns all of it."""
        end = time.monotonic() + seconds
        while text not in (output := self.run(*command)):
            assert time.monotonic() < end, f"{command}: {output}, not {text}"
            time.sleep(0.5)
        return output


def _end(process):
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    process.kill()
    process.wait()
