"""Names are counted once, whichever processes meet them."""

from ldm_jax.batches.seen import Seen
from tests.processes import run_pair

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
    assert run_pair(JOB) == ["[5, 5, 5]"] * 2
