"""How a run begins.

| module | what |
| --- | --- |
| `opening` | opens a run; the tables of the stages |
| `opened` | the record of an open run |
| `first_state` | the state that it starts from: restored or drawn |
| `init_from` | the weights of the run that `train.init_from` names |
| `pretrained_towers` | weights of towers that come from elsewhere |
| `same_run` | whether config and data are still those of the checkpoint |
| `same_state` | whether a changed config still makes the arrays of the checkpoint |
"""
