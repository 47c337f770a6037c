"""The toy world as training data."""
