"""What a config needs of TPUs, hosts and disks, before any are at hand."""
