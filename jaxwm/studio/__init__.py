"""Looking at runs and dreams."""
