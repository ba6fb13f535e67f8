"""Training, from mesh and state to the loop."""
