"""What people really hold, and what is wrong with it: one table for each part."""
