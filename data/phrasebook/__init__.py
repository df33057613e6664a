"""The grammar and lexicon that the sample corpus is written from."""
