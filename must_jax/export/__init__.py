"""Ways out: predictions and pictures."""
