"""Signatures, chains, groups and chords as what users hold: data that can be combined, sent and read again. How one
becomes calls on the server is told in `rsq.flow`."""
