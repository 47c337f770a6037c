"""What ablations compare the systems with."""
