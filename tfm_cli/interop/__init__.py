"""Models from and for other toolkits: Hugging Face Marian and Marian in, CTranslate2 out."""
