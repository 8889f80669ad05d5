"""This computer: operating system, GPUs, driver, memory, processes."""
