"""Streaming metrics that merge across hosts."""
