"""sacreBLEU's scores, with their signatures."""
