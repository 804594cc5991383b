"""Loading models and what is computed with them: weights, quantisation, heads, sizes."""
