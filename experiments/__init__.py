"""Experiments: each file defines `runs() -> {name: Plan}`; `jaxwm sweep FILE` runs what is not finished yet.

`dyna.py` is a program of its own: `python -m experiments.dyna`.
"""
