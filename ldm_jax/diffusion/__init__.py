"""Schedules, samplers, guidance and the training objective."""
