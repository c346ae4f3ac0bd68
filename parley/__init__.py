"""Parley serves a conversational Hugging Face model as a BentoML service with a typed chat API."""
