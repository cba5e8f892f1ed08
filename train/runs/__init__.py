"""Runs on disk: what each trained, on which software, how far it came, and its curves."""
