"""What rsq offers for use with other libraries. Nothing else in rsq imports from here."""
