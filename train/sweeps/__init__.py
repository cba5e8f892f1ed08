"""Several runs of one config tree side by side on one Ray: sweeps and searches."""
