"""The whole of the paper's Section IV: what is run, by whom, what came out."""
