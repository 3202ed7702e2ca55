"""The start of a run.

| module | content |
| --- | --- |
| `opening` | opens a run; the tables of the stages |
| `opened` | the dataclass of an open run |
| `first_state` | the state that it starts from: restored or initialised |
| `init_from` | the weights of the run that `train.init_from` names |
| `pretrained_towers` | pretrained weights of towers |
| `same_run` | checks that config and data are those of the checkpoint |
| `same_state` | checks that a changed config has the arrays of the checkpoint |
"""
