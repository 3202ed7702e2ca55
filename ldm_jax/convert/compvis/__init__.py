"""Checkpoints of CompVis's implementation: their names, options and YAML files."""
