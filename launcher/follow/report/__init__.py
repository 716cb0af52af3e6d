"""What a run did, as one page that needs nothing else: curves, a time line, planned against actual, data and settings."""
