"""Losses: pure functions that return sums with counts (`types.Mean`)."""
