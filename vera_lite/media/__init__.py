"""Video files and layered clips, paths, placement."""
