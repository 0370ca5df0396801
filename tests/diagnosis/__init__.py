"""What people really hold, and what is really wrong with it: one row a case."""
