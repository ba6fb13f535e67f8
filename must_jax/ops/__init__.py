"""Geometry on fixed shapes, one image at a time: pure jax.numpy, to vmap."""
