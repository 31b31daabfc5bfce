"""Floor 1: label files of other tools, read and written. One file per format; no pictures are decoded here."""
