"""One merge by several processes: on a cluster, or started by a launcher."""
