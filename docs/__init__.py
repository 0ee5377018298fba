"""The documentation, and the command that prints its tables (`python -m docs.tables`)."""
