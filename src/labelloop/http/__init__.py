"""Floor 6: Label Studio's calls, our JSON API, metrics and pages; no thinking here."""
