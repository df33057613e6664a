"""Scores of translations by sacreBLEU, with their signatures and paired significance tests."""
