"""A model and a dataset in, per-object results and tables out."""
