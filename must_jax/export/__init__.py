"""What leaves this package: predictions, and models that others run.

A format of `must-jax export` is a module of `formats`. To add one, name it
there.
"""
