"""Names are counted once, whichever processes meet them."""

import socket
import subprocess
import sys

from ldm_jax.batches.seen import Seen

JOB = """
import sys
import jax
address, index = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(address, num_processes=2, process_id=index)
from ldm_jax.batches.seen import Seen
seen = Seen(["both"])
seen.add([["a", "shared"], ["shared", "b", "c"]][index])
counts = [seen.count(), seen.count()]
seen.add([["b"], []][index])
print(counts + [seen.count()])
"""


def test_a_name_counts_once():
    seen = Seen(["a"])
    seen.add(["a", "b"])
    assert seen.count() == 2
    seen.add(["b", "\udcff.png"])
    assert seen.count() == 3


def test_processes_count_together():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", JOB, address, str(index)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    said = [job.communicate(timeout=120)[0].splitlines() for job in jobs]
    # What connects them speaks, too.
    assert [lines[-1] for lines in said] == ["[5, 5, 5]"] * 2
