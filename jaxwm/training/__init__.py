"""Running agents: trainer, evaluation, checkpoints, run directories. Files, processes and devices live only here."""
