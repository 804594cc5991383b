"""From rows of a data file to samples."""
