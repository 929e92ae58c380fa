"""Hugging Face config.json files, read into our schema and written from it."""
