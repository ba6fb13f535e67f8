"""Chains of runs, and the tables and reports they end in."""
