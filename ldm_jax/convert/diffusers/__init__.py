"""Folders of diffusers: their names and configs."""
