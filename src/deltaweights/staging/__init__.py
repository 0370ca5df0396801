"""Building a result in a staging directory, and publishing it in one step."""
