"""Batches, made of sets of records."""
