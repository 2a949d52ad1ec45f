"""Runs: their directories, their training, and the reader of finished ones."""
