"""Networks, in flax.linen; scalars and tuples in, arrays out."""
