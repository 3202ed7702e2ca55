"""Joins the other processes of a multi-process job."""

import os
import socket
import sys
import threading

from absl import flags

from ldm_jax import peers
from ldm_jax.errors import ConfigError, ProcessLost
from ldm_jax.ranges import read_whole


def define_cluster_flags() -> None:
    """Defines the flags that describe a job of several processes."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "Join a job of several processes; on TPU pods, Slurm and Open MPI the "
        "addresses are found, elsewhere give --coordinator, --num_processes and "
        "--process_id.",
    )
    flags.DEFINE_string("coordinator", None, "host:port of process 0.")
    flags.DEFINE_integer("num_processes", None, "Number of processes of the job.")
    flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")
    flags.DEFINE_integer(
        "start_timeout",
        300,
        "Seconds within which all processes must have joined.",
    )
    flags.DEFINE_integer(
        "hang_timeout",
        1800,
        "Seconds without a finished step, batch or compilation after which a job of "
        "several processes is given up; 0 for never.",
    )


def join_cluster() -> None:
    """Joins the other processes, if the flags ask for a job of several processes.

    Raises:
      ConfigError: If the flags contradict each other, or the processes cannot be
        joined.
    """
    values = flags.FLAGS
    address, count = values.coordinator, values.num_processes
    check(address, count, values.process_id, values.distributed)
    if not (values.distributed or address):
        return
    import jax

    # Processes of a job reach each other directly: an empty grpc_proxy keeps gRPC from
    # using http_proxy, with which it fails, and of which JAX would warn.
    if not os.environ.setdefault("grpc_proxy", ""):
        jax.config.update("jax_check_proxy_envs", False)
    seconds = values.start_timeout
    # On a timeout JAX itself would crash with a dump.
    timer = threading.Timer(seconds, _give_up, (address, values.process_id, seconds))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            address, count, values.process_id, initialization_timeout=seconds + 60
        )
    except (RuntimeError, ValueError, OSError) as error:
        text = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"the other processes cannot be joined ({text}); give --coordinator "
            "(host:port of process 0, a port that is free there), --num_processes and "
            "--process_id"
        ) from error
    finally:
        timer.cancel()
    peers.watch(values.hang_timeout)


def check(
    address: str | None, count: int | None, index: int | None, distributed: bool
) -> None:
    """Checks the flags against each other.

    Args:
      address: --coordinator.
      count: --num_processes.
      index: --process_id.
      distributed: --distributed.

    Raises:
      ConfigError: If they contradict each other.
    """
    if address is None and not distributed:
        for name, value in (("num_processes", count), ("process_id", index)):
            if value is not None:
                raise ConfigError(
                    f"--{name}={value} needs --coordinator, the host:port of process 0"
                )
    if address is not None:
        host, _, port = address.rpartition(":")
        if not host or read_whole(port, 1, 65535) is None:
            raise ConfigError(f"--coordinator={address} is not host:port")
    if count is not None and index is not None and index >= count:
        raise ConfigError(
            f"--process_id={index} must be less than --num_processes={count}"
        )


def _give_up(address, index, seconds):
    """Ends this process, as others have not joined in time."""
    sys.stdout.flush()
    print(f"error: {_explain(address, index, seconds)}", file=sys.stderr, flush=True)
    os._exit(ProcessLost.exit_code)


def _explain(address, index, seconds):
    """Returns an error message that names the missing process, as far as possible."""
    within = f"within {seconds} s (--start_timeout)"
    if address and index and not _answers(address):
        return (
            f"nothing answers at --coordinator={address} {within}: start process 0 "
            "there, and see that this host reaches the port"
        )
    return (
        f"not all processes of the job have joined {within}: start each of "
        "--num_processes, and see that they reach the port of process 0"
    )


def _answers(address):
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return True
    except OSError:
        return False
