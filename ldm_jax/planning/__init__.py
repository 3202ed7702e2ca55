"""Estimates a run's cost without a device, weights or data: `ldm-plan`.

| module | what |
| --- | --- |
| `abstract` | the stage of a config as shapes only |
| `examples` | shapes of a batch, from a config |
| `forward` | FLOPs of each network |
| `flatten` | a traced program as one list of steps |
| `liveness` | peak memory of a program's values |
| `memory` | memory of a run on each device |
| `advice` | changes that make a run fit in memory |
| `cost` | time and money |
| `plan`, `page` | the whole plan, and its text |
"""
