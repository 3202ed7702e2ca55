"""What sections of a config say together with data sets, tables and one another.

| module | what its section says |
| --- | --- |
| `conditions` | conditions, whose open options follow from data, inputs and backbone |
| `sample` | how samples are drawn, checked against what a model can |
| `schedule` | the noise levels, and what the network predicts |

`build.py` makes modules of sections; all above import these functions from there.
"""
