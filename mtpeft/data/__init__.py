"""Data between the disk and the training loop: readers, data sets made of others, the cache, keyed loading."""
