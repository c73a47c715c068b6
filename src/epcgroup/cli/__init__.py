"""The `epcgroup` command line; `main` is where it begins."""
