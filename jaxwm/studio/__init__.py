"""Looking at dreams: videos, plots and errors of what a world model imagines, next to what really happened."""
