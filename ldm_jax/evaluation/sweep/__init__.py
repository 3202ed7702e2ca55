"""Metrics of samples over guidance scales, numbers of steps and samplers.

| module | what |
| --- | --- |
| `__main__` | the command |
| `grid` | the settings that are tried |
| `rows` | their measurement, a file each |
| `tables` | the table, and the best row |
| `plot` | the plot |
"""
