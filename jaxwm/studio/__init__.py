"""Looking at dreams: videos, plots and errors of what a world model imagines, beside what really happened."""
