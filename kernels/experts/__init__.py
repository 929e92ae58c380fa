"""Expert kernels: rows sorted by expert, products with each expert's own matrix."""
