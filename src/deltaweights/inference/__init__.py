"""Structure checks and answers with transformers; no other package imports it."""
