"""Zarr arrays on disk and in the cloud: volumes, OME-NGFF images, patches, and the ledger."""
