"""Reads sections of a config that depend on data sets, tables or other sections.

| module | its section |
| --- | --- |
| `conditions` | conditions, whose unset options follow from data, inputs and backbone |
| `sample` | how samples are drawn, checked against the model |
| `schedule` | the noise levels, and what the network predicts |

`build.py` makes modules from sections; higher layers import these functions from there.
"""
