"""One file per dataset (reader and preparation), the synthetic writers, and the augmentation."""
