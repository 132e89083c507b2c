"""Files from elsewhere: downloads, share pages, the Hub, the cache."""
