"""The range engine: how bytes come over the network."""
