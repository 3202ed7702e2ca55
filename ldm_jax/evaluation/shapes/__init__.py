"""Condition adherence on the data set `shapes`, by a probe classifier."""
