"""Import from Hugging Face and Marian, and export to Hugging Face and CTranslate2."""
