"""Arrays in, arrays out: the science, which knows nothing of files, clusters or networks."""
