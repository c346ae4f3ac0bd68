"""The corpus: an endless, seeded stream of conversations written from the knowledge and the phrasings."""
