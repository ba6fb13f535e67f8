"""The labelling job: teachers in, label sets out."""
