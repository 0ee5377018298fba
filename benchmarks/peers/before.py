"""An older checkout of this project: its own benchmarks.ours answers, in a process of its own."""

import os
import sys

if __name__ == "__main__":
    _, path_flag, path, *arguments = sys.argv
    assert path_flag == "--path", "see benchmarks.sides.Peer.command"
    os.chdir(path)  # what `python -m` imports from
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.ours", "--what", "update", *arguments])
