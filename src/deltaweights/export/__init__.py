"""A merged model in the form that current transformers loads: names, configuration and tokenizer. Documents in, documents out."""
