"""What the commands do with files."""
