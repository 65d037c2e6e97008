"""What is computed, in memory and on the disk: effect maps, scores, run folders, files."""
