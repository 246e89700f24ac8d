"""Writers of synthetic datasets in the on-disk layout of real ones, drawn with the free hand."""
