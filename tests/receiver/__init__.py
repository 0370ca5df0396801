"""The proof travels: whoever receives a result can check it, wherever its bytes are."""
