"""Faults of the system, injected into real runs at every call that touches a file."""
