"""Running agents: the trainer, evaluation, checkpoints, run directories. Only here live files, processes and devices."""
