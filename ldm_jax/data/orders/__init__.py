"""In which order examples come.

| module | what |
| --- | --- |
| `order` | the endless stream: epochs that are functions of (seed, epoch) alone |
| `apportionment` | how many examples each part of a mixture has in an epoch |
| `part_counts` | how many examples of each part a run has taken |
| `mixture` | several sources as one, by their weights |
| `buckets` | shapes of images, and which image goes to which |
| `bucket_order` | epochs whose batches are of one bucket each |
| `describe` | what a run says of its order when it starts |
"""
