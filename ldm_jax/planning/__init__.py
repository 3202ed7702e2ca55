"""What a run would take, without a device, weights or data: `ldm-plan`.

| module | what |
| --- | --- |
| `abstract` | the stage of a config as shapes alone |
| `examples` | shapes of a batch, from a config |
| `forward` | the arithmetic of each network |
| `flatten` | a traced program as one list of steps |
| `liveness` | how much memory its values take at once |
| `memory` | what a device must hold for a run |
| `advice` | what makes a run fit that does not |
| `cost` | time and money |
| `plan`, `page` | all of it, and as text |
"""
