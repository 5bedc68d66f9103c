"""What a claim is, how it is run, judged, stored and shown."""
