"""Experiments: each file defines `runs() -> {name: Plan}`; `jaxwm sweep FILE` runs what is not finished yet."""
