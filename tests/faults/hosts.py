"""Hosts on one machine, each with its own name, address and processes, on one network.

A host is a set of Linux namespaces, so that what stands between real hosts stands
between these: none sees the processes of another, a cable can be pulled, a host can
stand still or lose its power. They share the disk. It needs Linux, root and `ip`.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import tempfile
import time

_NAMESPACES = ("--uts", "--net", "--ipc", "--pid", "--mount")
_UNSHARE = [
    *"setpriv --pdeathsig KILL unshare".split(),
    *_NAMESPACES,
    "--fork",
    "--kill-child",
    "--mount-proc",
]

# The first process of a host takes in those whose parents have ended.
_FIRST = """
hostname {name}; mount --bind {known} /etc/hosts; ip link set lo up
echo up; while :; do sleep 1000 & wait; done
"""


def possible():
    """Whether this machine lets the tests make hosts."""
    script = "ip link add end0 type veth peer name end1; ip link add switch type bridge"
    with contextlib.suppress(OSError):
        done = subprocess.run([*_UNSHARE, "sh", "-c", script], capture_output=True)
        return done.returncode == 0
    return False


@contextlib.contextmanager
def network(*names):
    """Starts hosts of these names at one switch; yields them, and ends them after."""
    addresses = {name: f"10.77.0.{k}" for k, name in enumerate(names, 1)}
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        known = folder / "hosts"
        lines = ["127.0.0.1 localhost", *(f"{a} {n}" for n, a in addresses.items())]
        known.write_text("\n".join(lines) + "\n")
        switch = stack.enter_context(Host("switch", known))
        switch.run("ip link add bridge type bridge && ip link set bridge up")
        hosts = [stack.enter_context(Host(name, known)) for name in names]
        for host in hosts:
            host.plug_into(switch, addresses[host.name])
        yield hosts


class Host:
    """One host, which runs while the `with` block does.

    Attributes:
      name: Its name.
    """

    def __init__(self, name, known):
        """Starts it.

        Args:
          name: Its name.
          known: Path of its list of hosts, as /etc/hosts.
        """
        self.name, self._known = name, known
        self._cable = None
        self._start()

    def _start(self):
        script = _FIRST.format(name=self.name, known=self._known)
        command = [*_UNSHARE, "bash", "-ec", script]
        self._power = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._power.stdout.readline() == "up\n", f"{self.name} does not start"
        self._first = _child(self._power.pid)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.lose_power()

    def run(self, script):
        """Runs a shell's line on it to its good end; returns what it printed."""
        command = self._inside(["sh", "-c", script])
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{self.name}: {script}: {done.stderr}"
        return done.stdout

    def start(self, command, **options):
        """Starts a command on it; options are those of `subprocess.Popen`."""
        return Process(self._inside(command), **options)

    def plug_into(self, switch, address):
        """Connects it, under an address."""
        self._cable = switch, address
        number = address.rpartition(".")[2]
        ends = f"net0 netns {self._first} type veth peer name port{number}"
        words = f"ip link add {ends} netns {switch._first}".split()
        subprocess.run(words, check=True)
        self.run(f"ip address add {address}/24 dev net0 && ip link set net0 up")
        port = f"ip link set port{number}"
        switch.run(f"{port} master bridge && {port} up")

    def unplug(self):
        """Pulls its cable: what is sent is lost, and nobody is told."""
        self.run("ip link set net0 down")

    def plug(self):
        """Puts the cable back."""
        self.run("ip link set net0 up")

    def freeze(self):
        """Has all its processes stand still."""
        self._send(signal.SIGSTOP)

    def thaw(self):
        """Has them continue."""
        # One that waits from outside stops once more where it continues before its own.
        for _ in range(3):
            self._send(signal.SIGCONT)
            time.sleep(0.1)

    def lose_power(self):
        """Ends all its processes at once."""
        self._power.kill()
        self._power.wait()
        self._power.stdout.close()

    def restart(self):
        """Starts it once more after it has lost its power."""
        self._start()
        self.plug_into(*self._cable)

    def _inside(self, words):
        enter = ["nsenter", f"--target={self._first}", *_NAMESPACES]
        return [*enter, f"--wdns={os.getcwd()}", "--", *map(str, words)]

    def _send(self, number):
        # Those who wait for them from outside stop with them, and must continue, too.
        mine = os.readlink(f"/proc/{self._first}/ns/pid")
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(folder / "ns" / "pid_for_children") == mine:
                    os.kill(int(folder.name), number)


class Process(subprocess.Popen):
    """A command on a host, of which this machine sees the one that waits for it."""

    def send_signal(self, number):
        """Sends a signal to the command itself."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(_child(self.pid), number)


def _child(process):
    path = pathlib.Path(f"/proc/{process}/task/{process}/children")
    children = path.read_text().split()
    if len(children) != 1:
        raise ProcessLookupError(f"{process} has the children {children}")
    return int(children[0])
