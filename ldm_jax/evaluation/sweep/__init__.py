"""Metrics of samples over guidance scales, numbers of steps and samplers.

| module | what |
| --- | --- |
| `__main__` | the command |
| `grid` | the settings to try |
| `rows` | their measurement, one file each |
| `tables` | the table, and the best row |
| `plot` | the plot |
"""
