"""Runs: their directories, what happens in one, and the reader of what they leave."""
