"""How the embedded model `pocket` is made: knowledge, corpus, tokenizer, training, evaluation, export."""
