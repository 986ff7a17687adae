"""Finding nodes, measuring links, and the topology file they are written to."""
