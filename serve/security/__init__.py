"""Keys, limits, the audit log and the other rules about who may use the endpoint."""
