"""Between labelling and learning: what people do with label sets."""
