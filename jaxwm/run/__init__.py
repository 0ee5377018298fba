"""Runs: plans, files, processes and machines around the compiled life in `jaxwm.training`."""
