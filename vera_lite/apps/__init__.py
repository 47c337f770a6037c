"""The commands' work on files."""
