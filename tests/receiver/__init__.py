"""The proof travels: whoever receives a merge can check it."""
