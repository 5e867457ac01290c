"""The lightning indexer's prolog: its keys, its queries and the weights of its heads."""
