"""What came of a run: findings, remedies, the JSON document and the HTML page."""
