"""Converts a merged model to the layout that current transformers loads: tensor names, configuration and tokenizer."""
