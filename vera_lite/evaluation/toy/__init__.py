"""Judges that know the truth of the toy world."""
