"""The head object of a cache: what turns stored states, or coordinates of the tail, into logits. Written once per cache."""
