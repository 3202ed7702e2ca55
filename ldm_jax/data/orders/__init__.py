"""The order of examples.

| module | what |
| --- | --- |
| `order` | the endless stream: epochs that are functions of (seed, epoch) alone |
| `apportionment` | how many examples each part of a mixture has in an epoch |
| `part_counts` | how many examples of each part a run has seen |
| `mixture` | several sources as one, by their weights |
| `buckets` | aspect-ratio buckets, and the assignment of images to them |
| `bucket_order` | epochs whose batches are of one bucket each |
| `describe` | log lines about the order when a run starts |
"""
