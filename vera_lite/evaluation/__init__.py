"""How good an edit is: metrics, judges, published tables."""
