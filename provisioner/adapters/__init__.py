"""One module for each thing outside: network, disk, GPU, processes.  They do not know one another."""
