"""Writers of synthetic datasets in the real ones' layouts: one file per dataset, over shared people, motion and pictures."""
