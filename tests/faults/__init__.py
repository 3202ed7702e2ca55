"""Faults that take minutes to try: `pytest -m slow tests/faults`, or as scripts."""
