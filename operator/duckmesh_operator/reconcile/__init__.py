"""Level-based reconciles: read what is, compare with what should be, write the difference, report. No kopf here."""
