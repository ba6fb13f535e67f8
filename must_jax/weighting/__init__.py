"""How the losses of the tasks combine into one."""
