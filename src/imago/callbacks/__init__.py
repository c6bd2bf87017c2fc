"""Callbacks of a run, one file each."""
