"""Model families of Hugging Face, a file per maker or line of models."""
