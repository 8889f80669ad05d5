"""Values that every room uses: errors, events, models, ports, redaction, units."""
