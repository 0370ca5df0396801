"""Merges that several processes do together: on a cluster, or started by a launcher."""
